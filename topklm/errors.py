"""Exceptions that end a command with one sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can put right; the message says what to change, naming the override or the file."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after a step, with a checkpoint; the message says how to continue. It ends a whole
    sweep."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the ValueError or TypeError of a config that checks itself into a UserError with the same sentence."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
