"""One package: from a ``.deb`` to the prose of its pages."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from ...files import atomic_path
from .html import html_paragraphs
from .markup import info_paragraphs, man_paragraphs, pod_paragraphs, text_paragraphs
from .prose import is_prose

EXTRACTION = 3  # raise when a change of this code changes what comes out
SCRATCH = "unpacking-"  # folders that a kill may leave behind

# By format, the best first: where a package holds a page twice, such as a manual page and its pod, one is read.
FORMATS: dict[str, tuple[re.Pattern[str], Callable[[str], list[str]]]] = {
    "html": (re.compile(r"(.+)\.(?:x?html?|page)"), html_paragraphs),
    "pod": (re.compile(r"(.+)\.pod"), pod_paragraphs),
    "info": (re.compile(r"(.+)\.info(?:-\d+)?"), info_paragraphs),
    "man": (re.compile(r"(.+)\.[1-9]\w*"), man_paragraphs),
    "text": (re.compile(r"(.+)\.(?:txt|text)"), text_paragraphs),
}
# Sources of pages that are there as HTML, other languages, indexes, and what tells of changes.
PASSED_OVER = re.compile(
    r"(^|/)(_sources|_static|translations|class-use|examples?|tests?|man/(?!man\d)[^/]+|"
    r"help/(?!(?:C|en(?:[-_]\w+)?)/)[^/]+)/|"
    r"(^|/)(genindex|index-\w+|index-all|allclasses|allpackages|search|py-modindex|package-(tree|use)|"
    r"overview-tree|changelog|changes|copyright|licen[cs]e|gpl|fdl)[^/]*$",
    re.IGNORECASE,
)


def extract(deb: Path, out: Path, copyright_file: Path) -> None:
    """Writes what a package says as JSON Lines, whole or not at all: first ``{"files": n}``, then ``{"path",
    "paragraphs"}`` of each page with prose. Before, its copyright file goes to ``copyright_file``, if it holds one:
    what is extracted is not looked at again.

    Raises:
        UserError: the package is damaged.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=SCRATCH) as folder:
        root = Path(folder)
        done = subprocess.run(["dpkg-deb", "-x", str(deb), folder], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{deb} cannot be unpacked ({last_line(done.stderr)}): remove it, and it is fetched anew.")
        _keep_copyright(root, copyright_file)
        pages = find_pages(root)
        with atomic_path(out) as scratch, open(scratch, "w", encoding="utf-8") as file:
            file.write(json.dumps({"files": len(pages)}) + "\n")
            for path, read in pages:
                paragraphs = [text for text in read(_decoded(root / path)) if is_prose(text)]
                if paragraphs:
                    line = {"path": str(path), "paragraphs": paragraphs}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _keep_copyright(root: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    for found in sorted(root.glob("usr/share/doc/*/copyright")):
        if found.is_file() and not found.is_symlink():
            with atomic_path(target) as scratch:
                shutil.copyfile(found, scratch)
            return


def find_pages(root: Path) -> list[tuple[Path, Callable[[str], list[str]]]]:
    """The pages below ``root``, by their paths in it, each with what reads it. Links are not followed: they may lead
    out of the package."""
    found: dict[str, list[tuple[str, Path]]] = {name: [] for name in FORMATS}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            inside = path.relative_to(root)
            if path.is_symlink() or not path.is_file() or PASSED_OVER.search(str(inside).removesuffix(".gz")):
                continue
            for kind, (pattern, _) in FORMATS.items():
                match = pattern.fullmatch(name.removesuffix(".gz"))
                if match and (kind != "man" or "/man/" in str(inside)):
                    found[kind].append((match[1], inside))
                    break
    pages: list[tuple[Path, Callable[[str], list[str]]]] = []
    sizes: dict[str, int] = {}  # a page of the same name that is smaller is another one, such as a page of links
    for kind, (_, read) in FORMATS.items():
        if kind == "info" and found["html"]:  # the same manuals
            continue
        own = {path: (root / path).stat().st_size for _, path in found[kind]}
        pages += [(path, read) for stem, path in found[kind] if sizes.get(stem, -1) < own[path]]
        for stem, path in found[kind]:
            sizes[stem] = max(own[path], sizes.get(stem, 0))
    return sorted(pages, key=lambda page: page[0])


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return ""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="ignore")  # what older pages are in


def last_line(text: str) -> str:
    """What a program said last, without a full stop."""
    return (text.strip().splitlines() or ["no reason given"])[-1].removeprefix("dpkg-deb: error: ").rstrip(".")
