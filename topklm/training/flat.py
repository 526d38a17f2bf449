"""A config as a flat map of full names, such as ``topk.k``: to compare two, or to say what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf


def flat(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """All settings by their full names. Interpolations are resolved; an empty group is a setting of its own."""
    return dict(_leaves(OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg))


def is_below(name: str, groups: Sequence[str]) -> bool:
    """Whether a setting is one of ``groups``, or in one of them."""
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in node.items():
        if isinstance(child, Mapping) and child:
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child
