"""Exceptions that end a command with one sentence instead of a traceback."""

from __future__ import annotations

import shlex
from pathlib import Path


class UserError(ValueError):
    """Something the user can put right; the message says what to change, naming the override or the file."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; the message says how to continue. It ends a whole sweep."""


def run_argument(path: Path | str) -> str:
    """``run=PATH`` as it can be pasted into a shell, for messages that say how to continue."""
    return shlex.quote(f"run={path}")


def missing_setting(name: str) -> str:
    """The sentence for a setting without a default that was not given."""
    return f"{name} is missing: give {name}=VALUE; --help or a comment in conf/ says of what."
