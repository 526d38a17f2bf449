"""Packages: a .deb made here, its text, and what later calls add."""

import gzip
import json
import os
import shutil
import subprocess

import pytest
from filelock import FileLock
from rich.console import Console

from topklm.data import Files
from topklm.data.debian.fetch import count_table, fetch
from topklm.data.debian.package import EXTRACTION
from topklm.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")

SHARED = "This paragraph stands in both of the packages, word for word."
PAGE = "The page explains at some length what the {} command is good for."


def make_deb(folder, name, files, links=()):
    """A package with these files, in ``folder``."""
    root = folder / f"root-{name}"
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: x\n"
    (root / "DEBIAN" / "control").write_text(control)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(gzip.compress(content.encode()) if path.endswith(".gz") else content.encode())
    for path, target in links:
        (root / path).symlink_to(target)
    target = folder / f"{name}_1%3a1.2-3_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(target)], check=True, capture_output=True)


@pytest.fixture
def out(tmp_path):
    """A folder as a call that was stopped after its downloads leaves it."""
    (tmp_path / "docs" / "debs").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("This secret text lies outside of the package and must never be read.")
    doc = "usr/share/doc/alpha3.1-doc"
    files = {
        f"{doc}/copyright": "Licensed under a licence.",
        f"{doc}/html/run.html": f"<p>{PAGE.format('run')}</p><p>{SHARED}</p><pre>code()</pre><p>{SHARED}</p>",
        f"{doc}/html/run.txt": "A source of the page.",
        f"{doc}/html/genindex.html": f"<p>{PAGE.format('index')}</p>",
        f"{doc}/changelog.txt.gz": PAGE.format("changelog"),
        "usr/share/man/man1/walk.1.gz": f".TH WALK 1\n.SH NAME\nwalk\n.PP\n{PAGE.format('walk')}\n",
        "usr/share/man/de/man1/gehe.1.gz": f".TH GEHE 1\n.PP\n{PAGE.format('gehe')}\n",
        "usr/share/help/sr@latin/x/a.page": f"<page><p>{PAGE.format('sr')}</p></page>",
        "usr/share/alpha/help/en-US/b.html": f"<p>{PAGE.format('english')}</p>",
        "usr/share/man/man1/broken.1.gz": PAGE.format("broken"),
    }
    links = [(f"{doc}/secret.txt", tmp_path / "secret.txt")]
    make_deb(tmp_path / "docs" / "debs", "alpha3.1-doc", files, links)
    beta = {"usr/share/doc/beta/notes.txt": f"{SHARED}\n\n{PAGE.format('beta')}\n"}
    make_deb(tmp_path / "docs" / "debs", "beta", beta)
    for root in (tmp_path / "docs" / "debs").glob("root-*"):
        shutil.rmtree(root)
    return tmp_path / "docs"


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pages_become_documents_and_no_paragraph_comes_twice(out):
    counts = fetch(["beta", "alpha3.1-doc"], out, 2, Console(quiet=True))
    assert records(out / "alpha3.1-doc.jsonl") == [
        {"text": PAGE.format("english"), "package": "alpha3.1-doc", "path": "usr/share/alpha/help/en-US/b.html"},
        {
            "text": f"{PAGE.format('run')}\n\n{SHARED}",
            "package": "alpha3.1-doc",
            "path": "usr/share/doc/alpha3.1-doc/html/run.html",
        },
        {"text": PAGE.format("broken"), "package": "alpha3.1-doc", "path": "usr/share/man/man1/broken.1.gz"},
        {"text": PAGE.format("walk"), "package": "alpha3.1-doc", "path": "usr/share/man/man1/walk.1.gz"},
    ]
    (beta,) = records(out / "beta.jsonl")
    assert beta["text"] == PAGE.format("beta")
    assert (out / "alpha3.1-doc.copyright").read_text() == "Licensed under a licence."
    alpha, second = counts
    texts = [record["text"] for record in records(out / "alpha3.1-doc.jsonl")]
    assert (alpha.files, alpha.documents, alpha.characters) == (4, 4, sum(map(len, texts)))
    assert (alpha.has_copyright, second.has_copyright, second.files) == (True, False, 1)
    console = Console(record=True, width=120)
    console.print(count_table(counts))
    assert f"{alpha.characters + len(beta['text']):,}" in console.export_text()


def test_a_later_call_adds_to_what_is_there(out):
    fetch(["beta"], out, 1, Console(quiet=True))
    assert records(out / "beta.jsonl")[0]["text"].startswith(SHARED)
    (extracted,) = (out / "extracted").iterdir()
    (out / "extracted" / "unpacking-x" / "usr").mkdir(parents=True)  # as a kill leaves them
    (out / "extracted" / ".beta.1.tmp").touch()
    before = extracted.stat().st_mtime_ns
    counts = fetch(["alpha3.1-doc"], out, 1, Console(quiet=True))
    assert [count.package for count in counts] == ["alpha3.1-doc", "beta"]
    assert extracted.stat().st_mtime_ns == before
    assert len(list((out / "extracted").iterdir())) == 2
    assert not records(out / "beta.jsonl")[0]["text"].startswith(SHARED)  # the first by name keeps it


def test_what_an_older_version_read_is_read_again(out):
    fetch(["alpha3.1-doc", "beta"], out, 1, Console(quiet=True))
    (extracted,) = (out / "extracted").glob("beta_*")
    extracted.rename(extracted.with_name(extracted.name.replace(f".{EXTRACTION}.", f".{EXTRACTION - 1}.")))
    (out / "beta.jsonl").write_text('{"text": "old"}')
    (out / ".beta.jsonl.1.tmp").touch()
    assert [count.package for count in fetch(["alpha3.1-doc"], out, 1, Console(quiet=True))] == ["alpha3.1-doc", "beta"]
    assert records(out / "beta.jsonl")[0]["text"] == PAGE.format("beta")
    assert [path.name for path in (out / "extracted").glob("beta_*")] == [extracted.name]
    assert not (out / ".beta.jsonl.1.tmp").exists()


def test_training_reads_it(out):
    fetch(["beta", "alpha3.1-doc"], out, 2, Console(quiet=True))
    documents = list(Files([str(out / "*.jsonl")], meta_columns=["package"]).documents())
    assert [document.meta["package"] for document in documents] == ["alpha3.1-doc"] * 4 + ["beta"]


def test_a_damaged_package(out):
    (deb,) = (out / "debs").glob("beta_*")
    deb.write_bytes(deb.read_bytes()[:100])
    with pytest.raises(UserError, match=r"beta_1%3a1.2-3_all.deb cannot be unpacked \(.*\): remove it") as caught:
        fetch(["beta"], out, 1, Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert not list((out / "extracted").iterdir())


def test_mistakes(out, monkeypatch):
    for packages in (["--option"], ["a/b"], []):
        with pytest.raises(UserError, match="give names of Debian packages"):
            fetch(packages, out, 1, Console(quiet=True))
    with FileLock(out / ".lock"), pytest.raises(UserError, match="is in use by another process"):
        fetch(["beta"], out, 1, Console(quiet=True))
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(UserError, match=r"no apt-get here, and packages=\[gamma\] needs apt of a Debian or Ubuntu"):
        fetch(["gamma"], out, 1, Console(quiet=True))


def test_what_apt_does_not_know(out, tmp_path, monkeypatch):
    """An apt-get that answers as the real one does, without a network."""
    (tmp_path / "apt-get").write_text(
        "#!/bin/sh\necho 'W: unsandboxed' >&2\necho 'E: Unable to locate package x.' >&2\nexit 100\n"
    )
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"apt cannot fetch gamma \(Unable to locate package x\): choose packages="):
        fetch(["gamma"], out, 1, Console(quiet=True))
    script = f"#!/bin/sh\ncp {next((out / 'debs').glob('beta_*'))} ./$2_2_all.deb\n"
    (tmp_path / "apt-get").write_text(script)
    fetch(["gamma"], out, 1, Console(quiet=True))
    assert (out / "debs" / "gamma_2_all.deb").exists()
    assert records(out / "gamma.jsonl")[0]["package"] == "gamma"
