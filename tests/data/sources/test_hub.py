"""Data sets through the ``datasets`` library, here on files of our own: what is there, what is missing, and no
network."""

import gzip
import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topklm.data import Choice, Hub, Mixture, Split, TokenizerConfig, TokenStore
from topklm.data.builder import StoreBuilder
from topklm.data.sources.mixture import Part
from topklm.errors import UserError

TEXTS = ["one", "two\nlines", "é 漢 🦊", "", "  ", *(f"text {i}" for i in range(8))]
TITLES = [f"T{i}" if i % 3 else None for i in range(len(TEXTS))]


@pytest.fixture(autouse=True)
def library(monkeypatch, tmp_path):
    """The library, with a cache of this test alone and without its counting of downloads over the network; and a hub
    that does not answer."""
    import datasets
    import huggingface_hub

    def no_answer(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "dataset_info", no_answer)

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
        "): check data.path, data.config, data.split and the network. Finished shards are kept, and the next run "
        "goes on after them."
    )


class Breaking:
    """A stream of one shard that ends in an error of the network, the first time."""

    num_shards = 1

    def __init__(self, rows, error, at):
        self.rows, self.error, self.at = rows, error, at

    def __iter__(self):
        for number, row in enumerate(self.rows):
            if number == self.at:
                raise self.error
            yield row

    def skip(self, n):
        return iter(self.rows[n:])

    def shard(self, num_shards, index):
        assert (num_shards, index) == (1, 0)
        return self


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
    ending = r"check data.path, data.config, data.split and the network\. Finished shards are kept, and the next"
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


# --- going on in a stream ---------------------------------------------------------------------------------------------

LAYOUTS = [((7, 5, 9), 3), ((10, 2, 4), 4), ((1, 1, 1), 1), ((25, 3), 100)]  # rows of each file, rows of a row group


def write_set(folder, kind, sizes, group=4):
    """Files of a data set; returns their names and all texts, in order."""
    texts = [f"text {i}" for i in range(sum(sizes))]
    files, first = [], 0
    for number, size in enumerate(sizes):
        part = texts[first : first + size]
        file = folder / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": part, "number": range(size)}), file, row_group_size=group)
        else:
            data = "".join(json.dumps({"text": text, "number": i}) + "\n" for i, text in enumerate(part)).encode()
            file.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
        files.append(str(file))
        first += size
    return files, texts


def loader(kind):
    return "parquet" if kind == "parquet" else "json"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize(("sizes", "group"), LAYOUTS)
def test_every_cursor_goes_on_exactly_over_files_and_row_groups(tmp_path, resumes, kind, sizes, group):
    files, texts = write_set(tmp_path, kind, sizes, group)
    documents = resumes(Hub(loader(kind), data_files=files))
    assert [d.text for d in documents] == texts
    assert [d.cursor["row"] for d in documents] == [*range(1, len(texts) + 1)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_going_on_reads_no_file_before(tmp_path, library, monkeypatch, kind):
    files, texts = write_set(tmp_path, kind, (7, 5, 9))
    source = Hub(loader(kind), data_files=files)
    cursors = [document.cursor for document in source.documents()]
    builder = library.load_dataset_builder(loader(kind), data_files=files).__class__
    real, read = builder._generate_tables, []

    def recorded(self, *args, **kwargs):
        if "allow_full_read" not in kwargs:  # a look at the columns, not a pass
            read.extend(kwargs.get("files") or kwargs["base_files"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(builder, "_generate_tables", recorded)
    for done, expected in ((7, files), (8, files[1:]), (12, files[1:]), (13, files[2:]), (21, files[2:])):
        read.clear()
        assert [d.text for d in source.documents(cursors[done - 1])] == texts[done:]
        assert [Path(name).name for name in read] == [Path(name).name for name in expected], done


@both_ways
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_cursor_of_rows_alone_goes_on_too(tmp_path, kind, streaming):
    """As older stores have it, and as data sets that were downloaded leave it."""
    files, texts = write_set(tmp_path, kind, (7, 5, 9))
    source = Hub(loader(kind), data_files=files, streaming=streaming)
    for done in range(len(texts) + 1):
        rest = list(source.documents(done))
        assert [d.text for d in rest] == texts[done:]
        if rest:
            assert [d.text for d in source.documents(rest[0].cursor)] == texts[done + 1 :]


def test_a_stream_and_a_download_take_up_each_others_cursors(tmp_path):
    files, texts = write_set(tmp_path, "parquet", (7, 5, 9))
    stream, download = (Hub("parquet", data_files=files, streaming=streaming) for streaming in (True, False))
    for one, other in ((stream, download), (download, stream)):
        for document in list(one.documents())[::4]:
            done = texts.index(document.text) + 1
            assert [d.text for d in other.documents(document.cursor)] == texts[done:]


def test_where_the_stream_is_cut_otherwise_than_before_the_number_of_rows_counts(tmp_path):
    files, texts = write_set(tmp_path, "parquet", (7, 5, 9))
    source = Hub("parquet", data_files=files)
    cursor = {"row": 9, "shard": [1, 4, 5]}  # of five
    assert [d.text for d in source.documents(cursor)] == texts[9:]


def test_skipped_rows_are_counted_from_where_it_goes_on(tmp_path):
    files = [write_jsonl(tmp_path / f"{i}.jsonl", text=["a", None, f"b{i}"]) for i in range(2)]
    source = Hub("json", data_files=files, on_error="skip")
    cursors = [document.cursor for document in source.documents()]
    assert source.skipped == {"row": 2}
    assert [d.text for d in source.documents(cursors[1])] == ["a", "b1"]
    assert source.skipped == {"row": 1}


def test_a_stream_says_which_share_of_its_files_is_done(tmp_path):
    files, _ = write_set(tmp_path, "jsonl", (2, 2, 2, 2))
    source = Hub("json", data_files=files)
    shares = [source.share(document.cursor) for document in source.documents()]
    assert shares == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert source.share(None) is source.share(5) is None


# --- one revision for a store -----------------------------------------------------------------------------------------

OLD, NEW = "a" * 40, "b" * 40


class Moving:
    """A hub with one data set, whose branch moves from a commit to the next."""

    def __init__(self, texts):
        self.head, self.texts, self.asked, self.reachable = OLD, texts, [], True

    def dataset_info(self, path, *, revision=None, timeout=None):
        if not self.reachable:
            raise ConnectionError("no network")
        self.asked.append((path, revision))
        return types.SimpleNamespace(sha=self.head)

    def load_dataset(self, path, config, *, split, revision, data_files, streaming):
        commit = revision if revision in (OLD, NEW) else self.head
        rows = [{"text": f"{text} of {commit[0]}"} for text in self.texts]
        return Breaking(rows, None, at=None) if streaming else Downloaded(rows)


class Downloaded(Breaking):
    def __init__(self, rows):
        super().__init__(rows, None, at=None)

    def __len__(self):
        return len(self.rows)


@pytest.fixture
def hub(library, monkeypatch):
    import huggingface_hub

    hub = Moving([f"text {i}" for i in range(300)])
    monkeypatch.setattr(huggingface_hub, "dataset_info", hub.dataset_info)
    monkeypatch.setattr(library, "load_dataset", hub.load_dataset)
    return hub


@both_ways
@pytest.mark.parametrize("revision", [None, "main"])
def test_what_goes_on_keeps_the_commit_it_began_with(hub, streaming, revision):
    def source():
        return Hub("who/what", revision=revision, streaming=streaming)

    whole = list(source().documents())
    assert hub.asked == [("who/what", revision)]
    assert {d.text[-1] for d in whole} == {"a"}
    hub.head = NEW
    for reachable in (True, False):
        hub.reachable = reachable
        for cursor, rest in ((whole[0].cursor, whole[1:]), (whole[-2].cursor, whole[-1:])):
            assert list(source().documents(json.loads(json.dumps(cursor)))) == rest
    hub.reachable = True
    assert {d.text[-1] for d in source().documents()} == {"b"}


@both_ways
def test_one_that_goes_on_from_rows_alone_is_pinned_from_there(hub, streaming):
    hub.head = NEW
    documents = list(Hub("who/what", streaming=streaming).documents(3))
    assert documents[0].text == "text 3 of b"
    assert documents[0].cursor["revision"] == NEW


@both_ways
def test_a_hub_that_says_no_commit_is_asked_again_later(hub, streaming):
    hub.reachable = False
    source = Hub("who/what", "small", revision="v1", streaming=streaming)
    cursor = next(source.documents()).cursor
    assert "revision" not in (cursor if isinstance(cursor, dict) else {})
    hub.reachable = True
    assert next(source.documents(cursor)).cursor["revision"] == OLD


def test_formats_and_folders_are_no_names_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "who" / "what").mkdir(parents=True)
    for path in ("json", "parquet", "who/what", str(tmp_path)):
        assert "revision" not in next(Hub(path).documents()).cursor
        assert Hub(path).beginning() is None
    assert hub.asked == []


def test_a_store_is_of_one_commit_whatever_happens_to_the_branch(hub, tmp_path):
    """Continued by a later run, and with a shard made again that was dropped, the first one included."""
    split = Split(0.1, shard_tokens=1000)

    def choice():
        return Choice(Hub("who/what"), TokenizerConfig(name="bytes"), split, tmp_path)

    first = choice()
    builder = StoreBuilder(first.folder, first.source, first.tokenizer, split)
    builder.advance()
    builder.advance()
    builder.close()
    hub.head = NEW
    for number in (0, 1):
        builder.train.drop(number)
    again = choice()
    again.build()
    assert again.folder == first.folder
    store = TokenStore(again.folder / "train")
    store.verify()
    text = again.tokenizer.decode(store.read(0, store.tokens).tolist())
    assert text.count(" of a") == store.manifest["documents"] > 200
    assert " of b" not in text


def test_a_mixture_keeps_the_commits_of_its_parts(hub, tmp_path):
    def mixture():
        return Mixture({"one": Part(Hub("who/what")), "two": Part(Hub("who/what"), 2.0)})

    begin = json.loads(json.dumps(mixture().beginning()))
    whole = list(mixture().documents())
    hub.head = NEW
    assert list(mixture().documents(begin)) == whole
    assert list(mixture().documents(whole[50].cursor)) == whole[51:]


# --- without a network ------------------------------------------------------------------------------------------------

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


def test_a_folder_with_the_name_of_a_format_hides_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "json" / "other.jsonl", text=["other"])
    prints = []
    for text in ("one", "two"):
        write_jsonl(tmp_path / "data" / "a.jsonl", text=[text])
        prints.append(Hub("json", data_files="data/a.jsonl").fingerprint)
    assert prints[0] != prints[1]


def test_wrong_settings():
    with pytest.raises(UserError, match=r"data.on_error=ignore: choose from raise, skip\."):
        Hub("who/what", on_error="ignore")


@pytest.mark.parametrize(
    ("path", "name"), [("HuggingFaceFW/fineweb-edu", "hub-fineweb-edu"), ("/data/my set.v1/", "hub-my-set-v1")]
)
def test_its_name_is_fit_for_a_file(path, name):
    assert Hub(path).name == name
