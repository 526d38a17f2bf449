"""Checks of the settings that a command has for itself; those of a run check themselves (``training/config.py``,
``callbacks/base.py``)."""

from __future__ import annotations

from typing import Any

from .errors import UserError


def is_whole(value: object, least: int = 1) -> bool:
    """Whether it is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def flag(name: str, value: Any) -> bool:
    """``value``, if it is true or false: Hydra reads ``no`` as a text, which is true for Python. Raises UserError."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value}: choose true or false.")
    return value


def whole_or_null(name: str, value: Any, meaning: str) -> int | None:
    """``value``, if it is a whole number of 1 or more, or null. Raises UserError.

    Args:
        meaning: of null, such as ``all cores``.
    """
    if value is not None and not is_whole(value):
        raise UserError(f"{name}={value}: give a whole number of 1 or more, or null for {meaning}.")
    return value


def text(name: str, value: Any) -> str:
    """``value``, if it is a text, such as a path. Raises UserError."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{name}={value}: give a path.")
    return value
