"""Data sets through the ``datasets`` library, here on files of our own: what is there, what is missing, and no
network."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topklm.data import Hub
from topklm.errors import UserError

TEXTS = ["one", "two\nlines", "é 漢 🦊", "", "  ", *(f"text {i}" for i in range(8))]
TITLES = [f"T{i}" if i % 3 else None for i in range(len(TEXTS))]


@pytest.fixture(autouse=True)
def library(monkeypatch, tmp_path):
    """The library, with a cache of this test alone and without its counting of downloads over the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    return datasets


def write_jsonl(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return str(path)


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return str(path)


WRITERS = {"json": write_jsonl, "parquet": write_parquet}
both_ways = pytest.mark.parametrize("streaming", [True, False])
all_kinds = pytest.mark.parametrize("kind", list(WRITERS))


@both_ways
@all_kinds
def test_files_of_a_format(tmp_path, resumes, kind, streaming):
    file = WRITERS[kind](tmp_path / "a", text=TEXTS, title=TITLES)
    source = Hub(kind, data_files=file, meta_columns=["title", "none"], streaming=streaming)
    documents = resumes(source)
    assert [d.text for d in documents] == TEXTS
    assert [d.meta.get("title") for d in documents] == TITLES
    assert documents[0].meta == {}
    assert documents[2].id == "train:3"
    assert source.skipped == {}
    assert source.name == f"hub-{kind}"


@both_ways
@all_kinds
def test_a_local_folder_with_two_splits(tmp_path, resumes, kind, streaming):
    suffix = {"json": "jsonl"}.get(kind, kind)
    WRITERS[kind](tmp_path / "set" / "data" / f"train-00000.{suffix}", body=TEXTS[:5])
    WRITERS[kind](tmp_path / "set" / "data" / f"train-00001.{suffix}", body=TEXTS[5:])
    WRITERS[kind](tmp_path / "set" / "data" / f"test-00000.{suffix}", body=["held out"])
    documents = resumes(Hub(str(tmp_path / "set"), text_column="body", streaming=streaming))
    assert [d.text for d in documents] == TEXTS
    (other,) = Hub(str(tmp_path / "set"), split="test", text_column="body", streaming=streaming).documents()
    assert (other.id, other.text) == ("test:1", "held out")


@both_ways
def test_data_files_by_split(tmp_path, streaming):
    files = {name: [write_jsonl(tmp_path / f"{name}.jsonl", text=[name])] for name in ("train", "extra")}
    (document,) = Hub("json", data_files=files, split="extra", streaming=streaming).documents()
    assert document.text == "extra"


@both_ways
@all_kinds
def test_no_such_column(tmp_path, kind, streaming):
    file = WRITERS[kind](tmp_path / "a", body=TEXTS, title=TITLES)
    for on_error in ("raise", "skip"):
        with pytest.raises(UserError) as error:
            list(Hub(kind, data_files=file, streaming=streaming, on_error=on_error).documents())
        assert str(error.value) == f"The data set {kind} has no column text: choose data.text_column from body, title."


@both_ways
@all_kinds
@pytest.mark.parametrize("nothing", [None, 5])
def test_rows_without_text(tmp_path, resumes, kind, streaming, nothing):
    texts = ["one", nothing, "two", nothing, nothing] if nothing is None else [nothing] * 3
    file = WRITERS[kind](tmp_path / "a", text=texts)
    documents = Hub(kind, data_files=file, streaming=streaming).documents()
    if nothing is None:
        assert next(documents).text == "one"
    row = 2 if nothing is None else 1
    with pytest.raises(UserError) as error:
        next(documents)
    assert (
        str(error.value)
        == f"The data set {kind} has no text in row {row}: pass over such rows with data.on_error=skip."
    )
    source = Hub(kind, data_files=file, streaming=streaming, on_error="skip")
    assert [d.text for d in resumes(source)] == [text for text in texts if isinstance(text, str)]
    assert [d.text for d in source.documents()] == [text for text in texts if isinstance(text, str)]
    assert source.skipped == {"row": 3}


@both_ways
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"path": "json", "data_files": "none.jsonl"}, r"FileNotFoundError: .*none\.jsonl"),
        ({"path": "json", "data_files": "bad.jsonl"}, "ArrowInvalid: JSON parse error"),
        ({"path": "parquet", "data_files": "bad.jsonl"}, "ArrowInvalid: Parquet magic bytes not found"),
        ({"path": "json", "data_files": "good.jsonl", "split": "valid"}, "ValueError: .*split"),
        ({"path": "empty"}, r"(EmptyDatasetError|DataFilesNotFoundError|FileNotFoundError): "),
    ],
)
def test_what_cannot_be_read(tmp_path, monkeypatch, caplog, streaming, options, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n' * 20)
    write_jsonl(tmp_path / "good.jsonl", text=TEXTS)
    with pytest.raises(UserError, match=rf"^The data set {options['path']} cannot be read \({reason}") as error:
        list(Hub(**options, streaming=streaming).documents())
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(
        "): check data.path, data.config, data.split and the network. What was tokenized is kept, and the next run "
        "goes on from there."
    )


class Breaking:
    """Rows that end in an error of the network, the first time."""

    def __init__(self, rows, error, at):
        self.rows, self.error, self.at = rows, error, at

    def __iter__(self):
        for number, row in enumerate(self.rows):
            if number == self.at:
                raise self.error
            yield row

    def skip(self, n):
        return iter(self.rows[n:])


def test_a_network_that_goes_away_and_comes_back(library, monkeypatch):
    asked = []
    rows = [{"text": text} for text in TEXTS]

    def load_dataset(path, config, **options):
        asked.append((path, config, options))
        if len(asked) == 1:
            raise OSError()
        return Breaking(rows, ConnectionError("the peer reset the connection.\nand more"), at=4)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    source = Hub("who/what", "small", "train", "v1", text_column="text")
    ending = r"check data.path, data.config, data.split and the network\. What was tokenized is kept, and the next"
    with pytest.raises(UserError, match=rf"^The data set who/what cannot be read \(OSError: OSError\): {ending}"):
        next(source.documents())
    read = []
    with pytest.raises(
        UserError,
        match=rf"^The data set who/what cannot be read \(ConnectionError: the peer reset the connection\): {ending}",
    ):
        for document in source.documents():
            read.append(document)
    assert len(read) == 4
    read += source.documents(read[-1].cursor)
    assert [d.text for d in read] == TEXTS
    expected = {"split": "train", "revision": "v1", "data_files": None, "streaming": True}
    assert asked == [("who/what", "small", expected)] * 3


def test_an_interrupt_is_not_taken_for_a_network_error(library, monkeypatch):
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: Breaking([{}], KeyboardInterrupt(), at=0))
    with pytest.raises(KeyboardInterrupt):
        next(Hub("who/what").documents())


OFFLINE = """
from topklm.data import Hub
from topklm.errors import UserError
for streaming in (True, False):
    source = Hub("nobody-at-all/no-such-data-set", data_files="en/*.json.gz", streaming=streaming)
    print(source.fingerprint)
    try:
        next(source.documents())
    except UserError as error:
        print(error)
"""


def test_a_hub_that_cannot_be_reached(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )
    prints, messages = ended.stdout.splitlines()[::2], ended.stdout.splitlines()[1::2]
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(set(prints)) == 1
    assert len(messages) == 2
    for message in messages:
        assert message.startswith("The data set nobody-at-all/no-such-data-set cannot be read (ConnectionError: ")
        assert message.count("Hub") == 1


def test_the_fingerprint_needs_neither_network_nor_library(library, monkeypatch):
    def fail(*_, **__):
        pytest.fail("asked")

    monkeypatch.setattr(library, "load_dataset", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    choices = [
        {},
        {"path": "who/other"},
        {"config": "small"},
        {"split": "test"},
        {"revision": "v2"},
        {"data_files": "data/*.parquet"},  # names in the data set, not here
        {"data_files": ["data/a.parquet"]},
        {"data_files": {"train": "data/a.parquet"}},
        {"data_files": "https://example.org/a.jsonl"},
        {"data_files": "hf://datasets/who/what/a.jsonl"},
        {"text_column": "body"},
        {"meta_columns": ["title"]},
    ]
    prints = [Hub(**{"path": "who/what"} | choice).fingerprint for choice in choices]
    assert len(set(prints)) == len(prints)
    assert prints == [Hub(**{"path": "who/what"} | choice).fingerprint for choice in choices]
    assert Hub("who/what", streaming=False).fingerprint == prints[0]  # the same documents in the same order


@pytest.mark.parametrize("how", ["name", "pattern", "list", "splits", "lists by split", "folder"])
def test_the_fingerprint_sees_changes_of_local_files(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    name, pattern = "data/a.jsonl", "data/*.jsonl"
    data_files = {
        "name": name,
        "pattern": pattern,
        "list": [pattern],
        "splits": {"train": name},
        "lists by split": {"train": [name]},
        "folder": None,
    }[how]

    def fingerprint(text):
        write_jsonl(tmp_path / name, text=[text])
        return Hub("data" if how == "folder" else "json", data_files=data_files).fingerprint

    assert fingerprint("one") == fingerprint("one")
    assert fingerprint("one") != fingerprint("two")


def test_wrong_settings():
    with pytest.raises(UserError, match=r"data.on_error=ignore: choose from raise, skip\."):
        Hub("who/what", on_error="ignore")


@pytest.mark.parametrize(
    ("path", "name"), [("HuggingFaceFW/fineweb-edu", "hub-fineweb-edu"), ("/data/my set.v1/", "hub-my-set-v1")]
)
def test_its_name_is_fit_for_a_file(path, name):
    assert Hub(path).name == name
