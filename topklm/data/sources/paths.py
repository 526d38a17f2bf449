"""Files of a source: found by glob patterns, in a fixed order, told apart by a fingerprint."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError

SAMPLE_BYTES = 1 << 20


def find_files(patterns: str | Sequence[str], name: str) -> list[Path]:
    """Files that match the patterns (``**`` goes down into folders; a folder means all below it), each once, sorted.

    Args:
        name: the override to name in an error.

    Raises:
        UserError: a pattern matches no file.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise UserError(f"{name} is empty: give a file, a folder or a glob such as {name}=['texts/**/*.jsonl'].")
    found: dict[Path, Path] = {}  # by what they are once links are followed; their own names say the kind
    for pattern in patterns:
        expanded = Path(pattern).expanduser()
        escaped = glob.escape(str(expanded))  # a name with brackets is a name where there is such a file
        wanted = f"{escaped}/**" if expanded.is_dir() else escaped if expanded.exists() else str(expanded)
        files = [Path(match) for match in glob.glob(wanted, recursive=True) if os.path.isfile(match)]
        if not files:
            raise UserError(f"{name}: no file matches {pattern} (looked from {Path.cwd()}): change it.")
        for path in files:
            target, path = path.resolve(), path.parent.resolve() / path.name
            found[target] = min(path, found.get(target, path))
    return sorted(found.values())


def short_names(files: Sequence[Path]) -> list[str]:
    """Their paths below the folder that all of them share: unique, and the same wherever that folder lies."""
    shared = os.path.commonpath([path.parent for path in files])
    names = [path.relative_to(shared).as_posix() for path in files]
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]  # names may be any bytes


def files_fingerprint(files: Sequence[Path], skip_unreadable: bool = False) -> str:
    """Changes when a file is added, renamed, resized, or changed near its beginning or end.

    Whole files are not read, since they may be terabytes; nor are times of change, which a copy would lose.

    Raises:
        UserError: a file cannot be read, unless ``skip_unreadable`` takes that as its content.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path, name in zip(files, short_names(files), strict=True):
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                head = file.read(SAMPLE_BYTES)
                file.seek(max(0, size - SAMPLE_BYTES))
                tail = file.read(SAMPLE_BYTES)
        except OSError as error:
            if not skip_unreadable:
                raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
            size, head, tail = -1, b"", b""
        digest.update(f"{name}\0{size}\0".encode())
        digest.update(hashlib.blake2b(head + tail).digest())
    return digest.hexdigest()
