"""A weighted mix of sources, interleaved in an order that is a function of the documents alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...errors import UserError
from .base import Cursor, Document, Source, beginning, read_documents


@dataclass(frozen=True)
class Part:
    """A source in a mixture, and its weight: its share of the text, relative to the other weights."""

    source: Source
    weight: float = 1.0


class Mixture:
    """Draws the next document from the part that is furthest behind its share of the text so far, in bytes.

    Every document keeps the name of its part in ``meta["source"]``, so that losses can be told apart.

    Args:
        parts: sources with weights, by name.
        stop: when a part ends, ``all`` goes on with the others until all have ended; ``first`` ends the mixture, so
            that the shares hold to the end.

    Raises:
        UserError: no part, a weight that is not above 0, or an unknown ``stop``.
    """

    def __init__(self, parts: Mapping[str, Part | Mapping[str, Any]], stop: str = "all") -> None:
        if not parts:
            raise UserError("data.parts is empty: name at least one source with its weight.")
        if stop not in ("all", "first"):
            raise UserError(f"data.stop={stop}: choose from all, first.")
        self.parts: dict[str, Part] = {}
        for name, part in parts.items():
            try:
                self.parts[name] = part if isinstance(part, Part) else Part(**part)
            except TypeError as error:
                raise UserError(f"data.parts.{name}: give source and weight, and nothing else.") from error
            weight = self.parts[name].weight
            if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight < float("inf"):
                raise UserError(f"data.parts.{name}.weight={weight}: give a number above 0.")
        self.stop = stop
        self.name = "mixture-" + "-".join(self.parts)[:60]

    @property
    def leaves(self) -> list[Source]:
        """The sources in it that are no mixtures."""
        parts = [part.source for part in self.parts.values()]
        return [leaf for source in parts for leaf in (source.leaves if isinstance(source, Mixture) else [source])]

    @property
    def skipped(self) -> dict[str, int]:
        return {
            f"{kind} of {name}": count
            for name, part in self.parts.items()
            for kind, count in part.source.skipped.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        parts = [[name, part.weight, part.source.fingerprint] for name, part in self.parts.items()]
        return hashlib.blake2b(json.dumps([parts, self.stop]).encode(), digest_size=8).hexdigest()

    def beginning(self) -> Cursor:
        """The cursors that its parts begin at."""
        return {name: [beginning(part.source), 0, False] for name, part in self.parts.items()}

    def documents(self, after: Cursor = None) -> Iterator[Document]:
        """A cursor holds the cursor of each part, the bytes drawn from it, and whether it has ended."""
        state = after or self.beginning()
        streams = {name: read_documents(part.source, state[name][0]) for name, part in self.parts.items()}
        drawn = {name: state[name][1] for name in self.parts}
        cursors = {name: state[name][0] for name in self.parts}
        ended = {name for name in self.parts if state[name][2]}
        while len(ended) < (len(self.parts) if self.stop == "all" else 1):
            name = min(
                (name for name in self.parts if name not in ended),
                key=lambda name: drawn[name] / self.parts[name].weight,
            )
            document = next(streams[name], None)
            if document is None:
                ended.add(name)
                continue
            cursors[name] = document.cursor
            drawn[name] += document.size
            yield replace(
                document,
                id=f"{name}:{document.id}",
                meta={**document.meta, "source": name},
                cursor={n: [cursors[n], drawn[n], n in ended] for n in self.parts},
            )

    def share(self, cursor: Cursor) -> float | None:
        shares = [part.source.share(cursor[name][0] if cursor else None) for name, part in self.parts.items()]
        known = [share for share in shares if share is not None]
        if len(known) < len(shares):
            return None
        return min(known) if self.stop == "all" else max(known)
