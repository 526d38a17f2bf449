"""Packages by name: fetched with apt, read side by side, and joined so that no paragraph comes twice.

The folder holds ``PACKAGE.jsonl`` and ``PACKAGE.copyright``, and below it ``debs/`` and ``extracted/``, from which a
later call goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from ...errors import UserError
from ...files import atomic_path, disk_errors
from ..processes import die_with_parent
from .package import EXTRACTION, SCRATCH, extract, last_line

ADVICE = "Free some space, or choose another place with out=..."


@dataclass(frozen=True)
class Count:
    """Of a package: pages read, documents and characters kept, and whether its copyright file is there."""

    package: str
    files: int
    documents: int
    characters: int
    has_copyright: bool


def fetch(packages: Sequence[str], out: Path, processes: int, console: Console) -> list[Count]:
    """Fetches and reads the packages that are not there yet, and writes ``out/PACKAGE.jsonl`` for all that are. Those
    that an older version of this code has read are read again.

    Raises:
        UserError: there is no apt, it knows no such package, another process is at work in ``out``, the disk is full.
    """
    wrong = [name for name in packages if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", str(name))]
    if wrong or not packages:
        raise UserError(f"packages={wrong or '[]'}: give names of Debian packages, such as packages=[perl-doc].")
    with disk_errors(out, ADVICE):
        for folder in (out, out / "debs", out / "extracted"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out / ".lock", timeout=0):
                for left in out.glob(f"*/{SCRATCH}*"):  # of a call that was killed, as are the next
                    shutil.rmtree(left)
                for left in (*out.glob(".*.tmp"), *out.glob("extracted/.*.tmp")):
                    left.unlink()
                old = [file for file in out.glob("extracted/*_*.jsonl") if not file.match(f"*.{EXTRACTION}.jsonl")]
                names = {file.name.partition("_")[0] for file in old}
                again = sorted(name for name in names if list(out.glob(f"debs/{name}_*.deb")))
                _prepare_all(list(dict.fromkeys([*packages, *again])), out, processes, console)
                return join(out)
        except Timeout as error:
            raise UserError(f"out={out} is in use by another process: wait for it, or choose another.") from error


def _prepare_all(packages: list[str], out: Path, processes: int, console: Console) -> None:
    with ProcessPoolExecutor(min(processes, len(packages)), initializer=die_with_parent) as pool:
        tasks = {pool.submit(prepare_package, name, out): name for name in packages}
        try:
            for task in as_completed(tasks):
                task.result()
                console.print(f"{tasks[task]} is there", highlight=False)
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():  # all they write is whole or not at all
                worker.kill()
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prepare_package(name: str, out: Path) -> None:
    """Fetches and reads one package, as far as that has not been done."""
    deb = next(iter(sorted((out / "debs").glob(f"{name}_*.deb"))), None) or _download(name, out / "debs")
    extracted = out / "extracted" / f"{deb.stem}.{EXTRACTION}.jsonl"
    if not extracted.exists():
        with disk_errors(out, ADVICE):
            extract(deb, extracted, out / f"{name}.copyright")
        for old in (out / "extracted").glob(f"{name}_*.jsonl"):
            if old != extracted:
                old.unlink()


def _download(name: str, debs: Path) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(
                f"There is no {tool} here, and packages=[{name}] needs apt of a Debian or Ubuntu system: run this on "
                f"one and copy {debs.parent} here, or use other data."
            )
    with tempfile.TemporaryDirectory(dir=debs, prefix=SCRATCH) as folder:
        done = subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, text=True)
        files = list(Path(folder).glob(f"{name}_*.deb"))
        if done.returncode or not files:
            errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")] or [done.stderr.strip()]
            raise UserError(
                f"apt cannot fetch {name} ({last_line(errors[0])}): choose packages=[...] that this system knows "
                f"(apt-cache search -n doc), or run apt-get update."
            )
        return files[0].replace(debs / files[0].name)


def join(out: Path) -> list[Count]:
    """Writes ``PACKAGE.jsonl`` for every extracted package, ``{"text", "package", "path"}`` a page, in order of their
    names. A paragraph that came before, in whatever package, is left out."""
    seen: set[bytes] = set()
    counts = []
    for extracted in sorted((out / "extracted").glob(f"*.{EXTRACTION}.jsonl")):
        package = extracted.name.partition("_")[0]  # names of packages have no underscore
        files = documents = characters = 0
        with (
            open(extracted, encoding="utf-8") as lines,
            atomic_path(out / f"{package}.jsonl") as scratch,
            open(scratch, "w", encoding="utf-8") as target,
        ):
            files = json.loads(next(lines))["files"]
            for line in lines:
                page = json.loads(line)
                kept = []
                for paragraph in page["paragraphs"]:
                    digest = hashlib.blake2b(paragraph.encode("utf-8", "surrogatepass"), digest_size=12).digest()
                    if digest not in seen:
                        seen.add(digest)
                        kept.append(paragraph)
                if kept:
                    text = "\n\n".join(kept)
                    documents, characters = documents + 1, characters + len(text)
                    record = {"text": text, "package": package, "path": page["path"]}
                    target.write(json.dumps(record, ensure_ascii=False) + "\n")
        counts.append(Count(package, files, documents, characters, (out / f"{package}.copyright").exists()))
    return counts


def count_table(counts: Sequence[Count]) -> Table:
    """The counts by package, with a row for all."""
    table = Table("package", "files", "documents", "characters", "copyright")
    for column in table.columns[1:4]:
        column.justify = "right"
    for count in counts:
        numbers = [f"{n:,}" for n in (count.files, count.documents, count.characters)]
        where = f"{count.package}.copyright" if count.has_copyright else "with the package it belongs to"
        table.add_row(count.package, *numbers, where)
    totals = [sum(getattr(count, name) for count in counts) for name in ("files", "documents", "characters")]
    table.add_section()
    table.add_row(f"{len(counts)} packages", *(f"{n:,}" for n in totals), "")
    return table
