"""Files of every kind give their texts, in the order of their paths, and can be gone on with after any of them."""

import codecs
import gzip
import io
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topklm.data import Files
from topklm.data.sources import files as files_module
from topklm.data.sources import paths as paths_module
from topklm.errors import UserError

# What a reader may stumble over: line ends of all sorts inside a text, quotes, characters of 1 to 4 bytes, nothing.
TEXTS = [f"text {i}" for i in range(20)]
TEXTS[3:9] = ["a\nb\r\nc\rd", "x\u2028y\u2029z\x85w\x0c\x1c", 'say "no"\\', "é ж 漢 🦊\x00", "", "  \n"]


def lines(texts, **fields):
    return "".join(json.dumps({"text": text} | fields) + "\n" for text in texts).encode()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def write_parquet(path, texts, row_group_size=7, **columns):
    pq.write_table(pa.table({"number": range(len(texts)), "text": texts} | columns), path, row_group_size)


def texts_of(source, after=None):
    return [document.text for document in source.documents(after)]


def write(folder, *names):
    """Each file holds its own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda data: data),
        ("a.jsonl", lambda data: data.rstrip(b"\n")),  # without a line end after the last
        ("a.jsonl", lambda data: data.replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.gz", lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:])),
        ("a.jsonl.zst", zstd),
        ("a.jsonl.zst", lambda data: zstd(data[:300]) + zstd(data[300:])),
        ("A.JSONL.GZ", gzip.compress),
        ("A.Jsonl.Zst", zstd),
    ],
)
def test_a_document_a_line(tmp_path, resumes, name, pack):
    (tmp_path / name).write_bytes(pack(lines(TEXTS)))
    assert [document.text for document in resumes(Files(str(tmp_path / name)))] == TEXTS


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_a_document_a_row(tmp_path, resumes, monkeypatch, batch):
    monkeypatch.setattr(files_module, "PARQUET_ROWS", batch)
    write_parquet(tmp_path / "a.parquet", TEXTS)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    documents = resumes(Files(str(tmp_path / "a.parquet")))
    assert [(d.id, d.text) for d in documents] == [(f"a.parquet:{row}", text) for row, text in enumerate(TEXTS, 1)]


def test_all_kinds_in_one_folder(tmp_path, resumes):
    (tmp_path / "0.md").write_bytes("# é\r\n\r\n".encode())
    write_parquet(tmp_path / "1.parquet", TEXTS)
    write_parquet(tmp_path / "2.parquet", [])
    (tmp_path / "3.jsonl").write_bytes(lines(TEXTS))
    (tmp_path / "4.jsonl").write_bytes(b"")
    (tmp_path / "5.jsonl.zst").write_bytes(zstd(lines(TEXTS)))
    (tmp_path / "6.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS)))
    (tmp_path / "7.txt").write_bytes(b"")
    (tmp_path / "8.txt").write_bytes(b"one\ntwo\n")
    source = Files(str(tmp_path))
    documents = resumes(source)
    assert [document.text for document in documents] == ["# é\r\n\r\n", *TEXTS * 4, "", "one\ntwo\n"]
    assert [d.id for d in documents if d.is_empty and ".jsonl.gz" in d.id] == ["6.jsonl.gz:8", "6.jsonl.gz:9"]
    assert source.skipped == {}


def test_blank_lines_are_no_documents_and_rows_are_lines(tmp_path, resumes):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines(["one"]) + b" \t\r\n\n" + lines(["two"]) + b"\n\n")
    source = Files(str(tmp_path))
    assert [(d.id, d.text) for d in resumes(source)] == [("a.jsonl:2", "one"), ("a.jsonl:5", "two")]
    assert source.skipped == {}


def test_chosen_columns(tmp_path, resumes):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "one", "title": "T", "year": 1984, "text": 0}\n{"body": "two"}\n')
    write_parquet(tmp_path / "b.parquet", ["x", "y"], body=["three", "four"], title=["U", None], year=[1, 2])
    documents = resumes(Files(str(tmp_path), "body", ["title", "year"]))
    assert [d.text for d in documents] == ["one", "two", "three", "four"]
    assert [d.meta for d in documents] == [
        {"title": "T", "year": "1984"},
        {},
        {"title": "U", "year": "1"},
        {"year": "2"},
    ]


def test_files_come_in_the_order_of_their_paths(tmp_path):
    names = ["a/b.txt", "a-b.txt", "a.txt", "B.txt", "a/1.txt", "a/10.txt", "a/2.txt", "é.txt"]
    write(tmp_path, *names)
    expected = sorted(names, key=lambda name: Path(name).parts)
    assert texts_of(Files(str(tmp_path))) == expected
    assert texts_of(Files([str(tmp_path / name) for name in reversed(names)])) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*.txt", ["1.txt", "2.txt"]),
        ("**/*.txt", ["1.txt", "2.txt", "deep/down/4.txt", "sub/3.txt"]),
        ("*/*.txt", ["sub/3.txt"]),
        ("sub", ["sub/3.txt", "sub/5.md"]),
        ("sub/", ["sub/3.txt", "sub/5.md"]),
        ("[12].txt", ["1.txt", "2.txt"]),
        ("1.txt", ["1.txt"]),
        (["2.txt", "*.txt", "./sub/../1.txt"], ["1.txt", "2.txt"]),
        (["deep", "sub/*.md"], ["deep/down/4.txt", "sub/5.md"]),
    ],
)
def test_patterns(tmp_path, monkeypatch, patterns, expected):
    write(tmp_path, "1.txt", "2.txt", "sub/3.txt", "deep/down/4.txt", "sub/5.md", ".hidden/6.txt", "sub/.7.txt")
    monkeypatch.chdir(tmp_path)
    assert texts_of(Files(patterns)) == expected


def test_names_with_brackets(tmp_path):
    write(tmp_path, "a[1].txt", "[x]/b.txt", "a1.txt")
    assert texts_of(Files(str(tmp_path / "a[1].txt"))) == ["a[1].txt"]
    assert texts_of(Files(str(tmp_path / "[x]"))) == ["[x]/b.txt"]


def test_home(tmp_path, monkeypatch):
    write(tmp_path, "a.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts_of(Files("~/*.txt")) == ["a.txt"]


def test_links_go_by_their_own_names_and_a_file_counts_once(tmp_path, resumes):
    """As in the hub's cache, where what has a name is a link to a blob that has none."""
    write(tmp_path, "blobs/0f3a", "data/a.txt")
    (tmp_path / "data" / "b.txt").symlink_to(tmp_path / "blobs" / "0f3a")
    (tmp_path / "data" / "c.txt").symlink_to(tmp_path / "data" / "a.txt")
    (tmp_path / "data" / "down").symlink_to(tmp_path / "data")  # a circle
    assert [(d.id, d.text) for d in resumes(Files(str(tmp_path / "data")))] == [
        ("a.txt:1", "data/a.txt"),
        ("b.txt:1", "blobs/0f3a"),
    ]


def test_files_of_the_same_name_are_told_apart(tmp_path, resumes):
    write(tmp_path, "2023/part.txt", "2024/part.txt", "2024/more/part.txt")
    documents = resumes(Files(str(tmp_path)))
    assert [d.id for d in documents] == ["2023/part.txt:1", "2024/more/part.txt:1", "2024/part.txt:1"]


def test_names_and_fields_that_are_no_unicode(tmp_path, resumes):
    try:
        (tmp_path / os.fsdecode(b"\xff.jsonl")).write_bytes(b'{"text": "a\\ud83db", "title": "c\\ude00"}\n')
    except OSError:
        pytest.skip("this file system takes no such names")
    (document,) = resumes(Files(str(tmp_path), meta_columns=["title"]))
    assert document.size == len("a\ufffdb".encode())
    assert (document.id + document.meta["title"]).encode().decode() == "\\udcff.jsonl:1c\\ude00"


@pytest.mark.parametrize("patterns", ["none/*.txt", "none.txt", ["a.txt", "none"], "*.md", "empty"])
def test_a_pattern_without_files(tmp_path, monkeypatch, patterns):
    write(tmp_path, "a.txt")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    last = patterns if isinstance(patterns, str) else patterns[-1]
    with pytest.raises(UserError) as error:
        Files(patterns)
    assert str(error.value) == f"data.paths: no file matches {last} (looked from {tmp_path}): change it."


def test_wrong_settings(tmp_path):
    write(tmp_path, "a.txt", "notes/README.rst", "b.json", "c.txt.gz")
    with pytest.raises(UserError, match=r"data.paths is empty: give a file, a folder or a glob such as data.paths="):
        Files([])
    with pytest.raises(UserError, match=r"data.on_error=ignore: choose from raise, skip\."):
        Files(str(tmp_path / "a.txt"), on_error="ignore")
    for name in ("notes", "b.json", "c.txt.gz"):
        with pytest.raises(
            UserError,
            match=r"is none of \.txt, \.md, \.jsonl, \.jsonl\.gz, \.jsonl\.zst, \.parquet: narrow data.paths",
        ):
            Files([str(tmp_path / "a.txt"), str(tmp_path / name)])


def test_the_fingerprint_stays_where_the_folder_is_copied(tmp_path, monkeypatch):
    write(tmp_path, "here/a.txt", "here/sub/b.txt")
    first = Files(str(tmp_path / "here")).fingerprint
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere" / "far")
    for path in (tmp_path / "elsewhere" / "far").rglob("*"):
        os.utime(path, (1, 1))
    assert Files(str(tmp_path / "elsewhere")).fingerprint == first
    monkeypatch.chdir(tmp_path)
    assert Files("here/**/*.txt").fingerprint == first


def test_the_fingerprint_changes_with_files_and_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(paths_module, "SAMPLE_BYTES", 10)
    folder = tmp_path / "f"

    def fingerprint(change=lambda: None, **settings):
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, "a.txt", "sub/b.txt")
        (folder / "long.txt").write_bytes(b"x" * 100)
        change()
        return Files(str(folder), **settings).fingerprint

    assert fingerprint() == fingerprint()
    changes = [
        lambda: None,
        lambda: (folder / "a.txt").write_text("b.txt"),  # as long as it was
        lambda: (folder / "a.txt").write_text("a.txt "),
        lambda: (folder / "long.txt").write_bytes(b"y" + b"x" * 99),
        lambda: (folder / "long.txt").write_bytes(b"x" * 99 + b"y"),
        lambda: (folder / "long.txt").write_bytes(b"x" * 101),
        lambda: (folder / "a.txt").rename(folder / "b.txt"),
        lambda: (folder / "sub").rename(folder / "other"),
        lambda: (folder / "a.txt").unlink(),
        lambda: write(folder, "c.txt"),
        lambda: shutil.copy(folder / "a.txt", folder / "a2.txt"),
    ]
    settings = [{"text_column": "body"}, {"meta_columns": ["title"]}]
    prints = [fingerprint(change) for change in changes] + [fingerprint(**setting) for setting in settings]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", ["id", "first", "tokens", "bytes", "source"])
def test_names_that_the_index_has_for_itself_are_refused(tmp_path, name):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=rf"data.meta_columns=\['title', '{name}'\]: {name} means something else here"):
        Files(str(tmp_path), meta_columns=["title", name])


def test_going_on_in_plain_lines_reads_none_before(tmp_path, monkeypatch):
    all_lines = lines(TEXTS).splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"\n" + b"".join(all_lines[:12]))
    (tmp_path / "b.jsonl").write_bytes(b"".join(all_lines[12:]))
    source = Files(str(tmp_path))
    documents = list(source.documents())
    assert [d.text for d in documents] == TEXTS
    read = []

    class Recorded(io.BytesIO):
        def __next__(self):
            read.append(super().__next__())
            return read[-1]

    monkeypatch.setattr(files_module, "_open", lambda path: Recorded(path.read_bytes()))
    for done, document in enumerate(documents, start=1):
        read.clear()
        assert texts_of(source, document.cursor) == TEXTS[done:]
        assert read == all_lines[done:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_cursor_of_rows_alone_goes_on_too(tmp_path, name):
    """As older stores have it."""
    pack = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstd}[name]
    (tmp_path / name).write_bytes(pack(lines(TEXTS)))
    (tmp_path / "b.txt").write_text("after")
    source = Files(str(tmp_path))
    whole = list(source.documents())
    for done in range(len(TEXTS) + 1):
        assert list(source.documents([0, done])) == whole[done:]


def test_the_share_that_is_done_counts_bytes_of_plain_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(["one", "two", "six"]))
    write_parquet(tmp_path / "b.parquet", ["one"])
    sizes = [(tmp_path / name).stat().st_size for name in ("a.jsonl", "b.parquet")]
    source = Files(str(tmp_path))
    shares = [source.share(document.cursor) for document in source.documents()]
    expected = [sizes[0] * done / 3 / sum(sizes) for done in (1, 2, 3)]
    assert shares == pytest.approx([*expected, expected[-1]])
    assert source.share(None) == 0
    again = Files(str(tmp_path))
    assert len(again.files) == 2
    (tmp_path / "b.parquet").unlink()
    assert again.share([0, 3, sizes[0]]) == 1  # what is gone counts nothing
    assert source.share([1, 0]) == pytest.approx(expected[-1])


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + lines(["one", "two"]))
    (tmp_path / "b.txt").write_bytes(codecs.BOM_UTF8 + b"three")
    assert [document.text for document in Files(str(tmp_path)).documents()] == ["one", "two", "three"]


def test_one_column_needs_no_brackets(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "section": "x"}\n')
    (document,) = Files(str(tmp_path), meta_columns="section").documents()
    assert document.meta == {"section": "x"}
