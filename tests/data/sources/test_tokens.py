"""Arrays of token ids are cut into documents at the end-of-text token, whatever they are stored in."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topklm.data import Tokens
from topklm.data.sources import tokens as tokens_module
from topklm.errors import UserError

EOT = 9
IDS = [EOT, 1, 2, 3, EOT, EOT, 4, EOT, 5, 6, EOT, EOT, EOT, 7, 8]


def nanogpt(path, ids, dtype="<u2"):
    np.array(ids, dtype).tofile(path)


def llm_c(path, ids, version=1, count=None):
    """The header as llm.c's dev/data/data_common.py writes it."""
    magic, dtype = {1: (20240520, "<u2"), 7: (20240801, "<u4")}[version]
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())


WRITERS = {
    "nanoGPT": (".bin", nanogpt, {}),
    "raw uint32": (".bin", lambda path, ids: nanogpt(path, ids, "<u4"), {"dtype": "uint32"}),
    "llm.c for GPT-2": (".bin", llm_c, {"dtype": "uint32"}),  # the header has the last word
    "llm.c for Llama 3": (".bin", lambda path, ids: llm_c(path, ids, 7), {}),
    "npy uint16": (".npy", lambda path, ids: np.save(path, np.array(ids, np.uint16)), {}),
    "npy uint32": (".npy", lambda path, ids: np.save(path, np.array(ids, np.uint32)), {}),
}
each_kind = pytest.mark.parametrize(("suffix", "write", "options"), WRITERS.values(), ids=WRITERS)


def split(ids, eot):
    """What is expected: (place of the first token, tokens) of each document that is not empty."""
    documents, first = [], 0
    for place, token in enumerate([*ids, eot]):
        if token == eot:
            if place > first:
                documents.append((first, list(ids[first:place])))
            first = place + 1
    return documents


def read(source, after=None):
    return [document.ids.tolist() for document in source.documents(after)]


@each_kind
def test_documents(tmp_path, resumes, suffix, write, options):
    path = tmp_path / f"a{suffix}"
    write(path, IDS)
    source = Tokens(str(path), EOT, **options)
    documents = resumes(source)
    assert [(d.id, d.ids.tolist()) for d in documents] == [
        (f"a{suffix}:1", [1, 2, 3]),
        (f"a{suffix}:6", [4]),
        (f"a{suffix}:8", [5, 6]),
        (f"a{suffix}:13", [7, 8]),
    ]
    assert [d.cursor for d in documents] == [[0, 5], [0, 8], [0, 11], [0, 15]]
    assert all(d.text == "" and d.size == 4 * len(d.ids) and not d.is_empty for d in documents)
    assert source.skipped == {}


@each_kind
@pytest.mark.parametrize(
    "ids", [[EOT], [EOT, EOT], [1, EOT], [EOT, 1], [1], list(range(9)) * 100, [1, EOT] * 5, [EOT, 1] * 5]
)
def test_edges(tmp_path, resumes, suffix, write, options, ids):
    write(tmp_path / f"a{suffix}", ids)
    documents = resumes(Tokens(str(tmp_path), EOT, **options))
    assert [d.ids.tolist() for d in documents] == [tokens for _, tokens in split(ids, EOT)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.sampled_from([1, 2, EOT]), min_size=1, max_size=40), scan=st.integers(1, 12))
def test_however_much_is_looked_through_at_once(tmp_path, resumes, monkeypatch, ids, scan):
    monkeypatch.setattr(tokens_module, "SCAN", scan)
    nanogpt(tmp_path / "a.bin", ids)
    documents = resumes(Tokens(str(tmp_path / "a.bin"), EOT))
    assert [(d.id, d.ids.tolist()) for d in documents] == [(f"a.bin:{n}", tokens) for n, tokens in split(ids, EOT)]


def test_more_than_is_looked_through_at_once(tmp_path):
    ids = np.random.default_rng(0).integers(0, 60_000, (1 << 22) + 1000).astype(np.uint16)
    ids[(1 << 22) - 3 : (1 << 22) + 3] = EOT  # across the border, too
    nanogpt(tmp_path / "a.bin", ids)
    documents = list(Tokens(str(tmp_path / "a.bin"), EOT).documents())
    pieces = np.split(ids, np.flatnonzero(ids == EOT))
    expected = [piece[piece != EOT] for piece in pieces]
    expected = [piece for piece in expected if len(piece)]
    assert len(documents) == len(expected)
    assert all(np.array_equal(d.ids, piece) for d, piece in zip(documents, expected, strict=True))


def test_several_files(tmp_path, resumes):
    for name, write in (("b/val.npy", WRITERS["npy uint32"][1]), ("a/train.bin", llm_c), ("b/train.bin", nanogpt)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, IDS)
    documents = resumes(Tokens(str(tmp_path), EOT))
    assert [d.ids.tolist() for d in documents] == [[1, 2, 3], [4], [5, 6], [7, 8]] * 3  # none goes on in the next file
    assert [d.id for d in documents[::4]] == ["a/train.bin:1", "b/train.bin:1", "b/val.npy:1"]


def test_large_ids(tmp_path):
    nanogpt(tmp_path / "a.bin", [65_535, 50_256, 40_000])
    assert read(Tokens(str(tmp_path / "a.bin"))) == [[65_535], [40_000]]
    llm_c(tmp_path / "b.bin", [128_255, 128_001, 70_000], 7)
    assert read(Tokens(str(tmp_path / "b.bin"), 128_001)) == [[128_255], [70_000]]
    assert read(Tokens(str(tmp_path / "a.bin"), 128_001)) == [[65_535, 50_256, 40_000]]  # an id that it cannot hold


def test_documents_do_not_hang_on_the_file(tmp_path):
    nanogpt(tmp_path / "a.bin", IDS)
    documents = list(Tokens(str(tmp_path / "a.bin"), EOT).documents())
    nanogpt(tmp_path / "a.bin", [0] * len(IDS))
    assert documents[0].ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.bin", b"\1\0\2", "its size is no multiple of uint16, or it is empty"),
        ("a.bin", b"", "its size is no multiple of uint16, or it is empty"),
        ("a.npy", b"", "EOF: reading magic string, expected 8 bytes got 0"),
        ("a.npy", b"garbage" * 100, r"the magic string is not correct; .*"),
    ],
)
def test_wrong_sizes_and_garbage(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} cannot be read as tokens: {reason}\.$"):
        read(Tokens(str(tmp_path)))


def test_a_header_must_be_true(tmp_path):
    path = tmp_path / "a.bin"
    for version, size in ((1, 2), (7, 4)):
        for count in (14, 16, 0, -1):
            llm_c(path, IDS, version, count)
            with pytest.raises(
                UserError, match=rf"a\.bin cannot be read as tokens: its header says {count} tokens, but it holds 15\."
            ):
                read(Tokens(str(path), EOT))
        llm_c(path, IDS, version)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=rf"its size is no multiple of <u{size}, or it is empty\."):
            read(Tokens(str(path), EOT))
        llm_c(path, [], version)
        with pytest.raises(UserError, match=rf"its size is no multiple of <u{size}, or it is empty\."):
            read(Tokens(str(path), EOT))
        path.write_bytes(path.read_bytes()[:512])
        with pytest.raises(UserError, match=r"a\.bin cannot be read as tokens: "):
            read(Tokens(str(path), EOT))


def test_an_unknown_version_is_no_header(tmp_path):
    path = tmp_path / "a.bin"
    llm_c(path, IDS, 1)
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    assert sum(map(len, read(Tokens(str(path), eot_id=60_000)))) == 512 + len(IDS)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros(4, np.int64), r"int64 of shape \(4,\)"),
        (np.zeros(4, np.int32), r"int32 of shape \(4,\)"),
        (np.zeros(4, np.uint8), r"uint8 of shape \(4,\)"),
        (np.zeros(4, np.float32), r"float32 of shape \(4,\)"),
        (np.zeros(4, ">u2"), r">u2 of shape \(4,\)"),
        (np.zeros((2, 2), np.uint16), r"uint16 of shape \(2, 2\)"),
        (np.zeros((), np.uint16), r"uint16 of shape \(\)"),
    ],
)
def test_arrays_of_another_kind(tmp_path, array, what):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=rf"a\.npy holds {what}: give one row of uint16 or uint32\."):
        read(Tokens(str(tmp_path)))


def test_an_archive_and_pickled_objects_are_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, a=np.zeros(3, np.uint16))
    with pytest.raises(UserError, match=r"a\.npy cannot be read as tokens: the magic string is not correct"):
        read(Tokens(str(tmp_path)))
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy cannot be read as tokens: .*Python objects"):
        read(Tokens(str(tmp_path)))


@pytest.mark.parametrize("name", ["a.bin", "a.npy"])
def test_a_file_that_is_gone(tmp_path, name):
    np.save(tmp_path / "0.npy", np.array([1, 2], np.uint16))
    (tmp_path / name).touch()
    source = Tokens(str(tmp_path))
    (tmp_path / name).unlink()
    documents = source.documents()
    assert next(documents).ids.tolist() == [1, 2]
    with pytest.raises(UserError, match=rf"{name} cannot be read as tokens: .*No such file or directory"):
        next(documents)


def test_wrong_settings(tmp_path):
    nanogpt(tmp_path / "a.bin", IDS)
    with pytest.raises(UserError, match=r"data.dtype=int32: choose from uint16, uint32\."):
        Tokens(str(tmp_path), dtype="int32")
    with pytest.raises(UserError, match=r"data.paths: no file matches .*none\.bin \(looked from"):
        Tokens(str(tmp_path / "none.bin"))
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UserError, match=r"readme\.txt is neither \.npy nor \.bin: narrow data.paths"):
        Tokens(str(tmp_path))


def test_fingerprint(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "a.bin"
    nanogpt(path, IDS)

    def fingerprint(**options):
        return Tokens(str(tmp_path / "a"), **options).fingerprint

    prints = [fingerprint(), fingerprint(eot_id=1), fingerprint(dtype="uint32")]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Tokens(str(tmp_path / "b")).fingerprint == prints[0]
    nanogpt(path, [*IDS[:-1], 1])
    prints.append(fingerprint())
    path.rename(path.with_name("b.bin"))
    prints.append(fingerprint())
    assert len(set(prints)) == 5
