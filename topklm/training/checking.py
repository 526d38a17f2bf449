"""Making dataclasses of config nodes, with one sentence for whatever does not fit."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pydantic

from ..errors import UserError
from ..schedules import UNITS

T = TypeVar("T")


def build(cls: type[T], node: Mapping[str, Any], prefix: str) -> T:
    """Makes the dataclass ``cls`` of a config node, checking names and types.

    Raises:
        UserError: one sentence that names the override: an unknown or a missing name, a wrong type, a number that is
        none, or what ``__post_init__`` has to say.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_names(node, types, f"{prefix}.")
    for name, value in node.items():  # pydantic takes true for 1
        if "bool" not in types[name] and any(isinstance(one, bool) for one in _each(value)):
            raise UserError(f"{prefix}.{name}={str(value).lower()}: true and false have no meaning here.")
    try:
        made = pydantic.TypeAdapter(cls).validate_python(dict(node))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if "error" in first.get("ctx", {}):  # raised by __post_init__, in its own words
            raise UserError(str(first["ctx"]["error"])) from error
        name = str(first["loc"][0]) if first["loc"] else ""
        raise UserError(f"{prefix}.{name}={node.get(name)}: {first['msg'].lower()}.") from error
    for name, value in vars(made).items():
        if any(isinstance(one, float) and not math.isfinite(one) for one in _each(value)):
            raise UserError(f"{prefix}.{name}={node[name]}: give a finite number.")
    return made


def check_names(node: Any, known: Iterable[str], prefix: str, also: Iterable[str] = ()) -> None:
    """Raises UserError for a name in ``node`` that is neither in ``known`` nor in ``also``, and for one of ``known``
    that is missing there: every setting has one default, the one in the YAML."""
    if not isinstance(node, Mapping):
        raise UserError(f"{prefix.rstrip('.')}={node}: this is a group of settings: give values to those in it.")
    known, also = list(known), list(also)
    for name in known:
        if name not in node:
            raise UserError(f"{prefix}{name} is missing: a setting can be changed, but not taken away.")
    for name in node:
        if name not in known and name not in also:
            raise UserError(f"{prefix}{name} is not a setting of topklm: choose from {', '.join([*known, *also])}.")


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def parse_count(value: int | str, name: str) -> int:
    """A number of tokens: ``20000000`` or ``20M``; k, M and B are powers of a thousand."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", str(value).strip().lower())
    if not match:
        raise ValueError(f"{name}={value}: give a number of tokens, such as 3000000 or 3M.")
    return round(float(match[1]) * UNITS[match[2]])
