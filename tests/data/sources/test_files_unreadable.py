"""What cannot be read ends a run with a sentence that says where and what, or is counted while all else is read."""

import gzip
import json
import random
import re
import zlib

import pyarrow.parquet as pq
import pytest

from topklm.data import Files
from topklm.errors import UserError

from .test_files import lines, texts_of, write_parquet, zstd

ADVICE = " Mend it, or pass over the like of it with data.on_error=skip."


def outcomes(path):
    """The sentence it fails with (less the advice); and with on_error=skip, what is read and what is counted. Files
    before and after it must be read in any case."""
    before, after = (path.with_name(name) for name in ("0.txt", "z.txt"))
    before.write_text("before")
    after.write_text("after")
    read, message = [], ""
    try:
        for document in Files(str(path.parent)).documents():
            read.append(document.text)
    except UserError as error:
        message = str(error)
    assert read[0] == "before"
    assert "after" not in read
    assert message.endswith(ADVICE)
    source = Files(str(path.parent), on_error="skip")
    kept = texts_of(source)
    skipped = dict(source.skipped)
    assert texts_of(source) == kept
    assert source.skipped == skipped  # counted anew
    assert (kept[0], kept[-1]) == ("before", "after")
    assert kept[: len(read)] == read
    return message.removesuffix(ADVICE), kept[1:-1], skipped


GOOD = lines(["one"]), lines(["two"])


@pytest.mark.parametrize(
    ("line", "kind", "sentence"),
    [
        (b'{"text": "a", x}', "line", r": not JSON (Expecting property name enclosed in double quotes, column 15)."),
        (b"not json", "line", r": not JSON (Expecting value, column 1)."),
        (b'{"text": "a"} {"text": "b"}', "line", r": not JSON (Extra data, column 15)."),
        (b'{"text": "a\tb"}', "line", r": not JSON (Invalid control character at, column 12)."),
        (b"\0\0\0\0", "line", r": not JSON (Expecting value, column 1)."),
        (b'["a"]', "line", r": not JSON (list, not an object with fields)."),
        (b'"a"', "line", r": not JSON (str, not an object with fields)."),
        (b"null", "line", r": not JSON (null, not an object with fields)."),
        (b'{"text": "a\xffb"}', "non-UTF-8 line", r": byte 11 is not UTF-8."),
        pytest.param(b"[" * 100_000, "line", r": not JSON (maximum recursion depth exceeded", id="deep"),
        pytest.param(b'{"n": ' + b"1" * 10_000 + b"}", "line", r": not JSON (Exceeds the limit", id="digits"),
        (b'{"body": "a", "title": "b"}', "row", r": no field text (its fields: body, title; choose one with"),
        (b"{}", "row", r": no field text (its fields: none; choose one with data.text_column)."),
        (b'{"text": null}', "row", r": null, not text, in text (its fields: text; choose one with"),
        (b'{"text": 5, "a": ""}', "row", r": int, not text, in text (its fields: text, a; choose one with"),
        (b'{"text": ["a"]}', "row", r": list, not text, in text (its fields: text; choose one with"),
        (b'{"text": {"a": "b"}}', "row", r": dict, not text, in text (its fields: text; choose one with"),
    ],
)
@pytest.mark.parametrize("pack", [("m.jsonl", bytes), ("m.jsonl.gz", gzip.compress), ("m.jsonl.zst", zstd)])
def test_a_bad_line(tmp_path, line, kind, sentence, pack):
    path = tmp_path / pack[0]
    path.write_bytes(pack[1](GOOD[0] + line + b"\n" + GOOD[1]))
    message, kept, skipped = outcomes(path)
    assert message.startswith(f"{path}, {kind.removeprefix('non-UTF-8 ')} 2{sentence}")
    assert kept == ["one", "two"]
    assert skipped == {kind: 1}


def test_what_is_deep_but_sound_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}\n")
    assert texts_of(Files(str(tmp_path))) == ["a"]


def test_a_bad_line_far_down(tmp_path):
    texts = [f"text {i}" for i in range(20_000)]
    all_lines = lines(texts).splitlines(keepends=True)
    all_lines[17_345 - 1] = all_lines[17_345 - 1][:-3] + b"\n"
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(b"".join(all_lines)))
    message, kept, skipped = outcomes(tmp_path / "m.jsonl.gz")
    assert re.fullmatch(rf"{tmp_path}/m\.jsonl\.gz, line 17345: not JSON \(.*, column 21\)\.", message)
    assert kept == texts[:17_344] + texts[17_345:]
    assert skipped == {"line": 1}


def test_several_bad_lines_are_counted_by_kind_and_resumed_past(tmp_path, resumes):
    data = b"{\n" + GOOD[0] + b"{}\n{\n" + GOOD[1] + b"\xff\n{}\n"
    (tmp_path / "a.jsonl").write_bytes(data)
    source = Files(str(tmp_path), on_error="skip")
    documents = resumes(source)
    assert [(d.id, d.text) for d in documents] == [("a.jsonl:2", "one"), ("a.jsonl:5", "two")]
    assert texts_of(source) == ["one", "two"]
    assert source.skipped == {"line": 2, "non-UTF-8 line": 1, "row": 2}
    assert texts_of(source, documents[0].cursor) == ["two"]
    assert source.skipped == {"line": 1, "non-UTF-8 line": 1, "row": 2}


@pytest.fixture(scope="module")
def long_texts():
    """4 MB that do not compress well."""
    rng = random.Random(0)
    return [rng.randbytes(500).hex() for _ in range(4000)]


def test_a_gz_cut_short(tmp_path, long_texts):
    packed = gzip.compress(lines(long_texts), 1)
    cut = packed[: len(packed) // 2]
    whole_lines = zlib.decompressobj(31).decompress(cut).count(b"\n")
    assert 1500 < whole_lines < 2500
    (tmp_path / "m.jsonl.gz").write_bytes(cut)
    message, kept, skipped = outcomes(tmp_path / "m.jsonl.gz")
    assert message == (
        f"{tmp_path}/m.jsonl.gz cannot be read to its end: Compressed file ended before the end-of-stream marker was "
        f"reached."
    )
    assert kept == long_texts[: len(kept)]
    assert whole_lines - 300 < len(kept) <= whole_lines  # what the decompressor still held is lost
    assert skipped == {"file": 1}


@pytest.mark.parametrize("missing", [1, 5, 1_000_000])
def test_a_zst_cut_short(tmp_path, long_texts, missing):
    packed = zstd(lines(long_texts))
    (tmp_path / "m.jsonl.zst").write_bytes(packed[:-missing])
    message, kept, skipped = outcomes(tmp_path / "m.jsonl.zst")
    assert message == f"{tmp_path}/m.jsonl.zst cannot be read to its end: Truncated compressed stream."
    assert kept == long_texts[: len(kept)]
    there = len(long_texts) * (1 - missing / len(packed))
    assert there - 1300 < len(kept) <= there + 1  # up to a MiB that the decompressor still held is lost
    assert skipped == {"file": 1}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("m.jsonl.gz", b"garbage" * 100, r"Not a gzipped file (b'ga')"),
        ("m.jsonl.zst", b"garbage" * 100, "ZSTD decompress failed: Unknown frame descriptor"),
        ("m.parquet", b"garbage" * 100, "Parquet magic bytes not found in footer. Either the file is corrupted or"),
        ("m.parquet", b"PAR1", "Parquet file size is 4 bytes"),
        ("m.parquet", b"", "Parquet file size is 0 bytes"),
    ],
)
def test_garbage(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    message, kept, skipped = outcomes(tmp_path / name)
    assert message.startswith(f"{tmp_path / name} cannot be read to its end: {reason}")
    assert message.count(".") == str(tmp_path / name).count(".") + 1 + reason.count(".")
    assert kept == []
    assert skipped == {"file": 1}


@pytest.mark.parametrize(
    ("name", "pack", "reason"),
    [
        ("m.jsonl.gz", gzip.compress, "Error -3 while decompressing data: invalid block type"),
        ("m.jsonl.zst", zstd, "ZSTD decompress failed: .*"),
    ],
)
def test_damage_in_the_second_half(tmp_path, long_texts, name, pack, reason):
    whole, damaged = pack(lines(long_texts[:2000])), bytearray(pack(lines(long_texts[2000:])))
    damaged[10:30] = b"\xff" * 20  # right behind the header
    (tmp_path / name).write_bytes(whole + damaged)
    message, kept, skipped = outcomes(tmp_path / name)
    assert re.fullmatch(rf"{re.escape(str(tmp_path / name))} cannot be read to its end: {reason}\.", message)
    assert kept == long_texts[: len(kept)]
    assert 500 < len(kept) <= 2000
    assert skipped == {"file": 1}


@pytest.mark.parametrize("pack", [("m.jsonl.gz", gzip.compress), ("m.jsonl.zst", zstd)])
def test_garbage_after_what_is_whole(tmp_path, long_texts, pack):
    (tmp_path / pack[0]).write_bytes(pack[1](lines(long_texts)) + b"garbage")
    message, kept, skipped = outcomes(tmp_path / pack[0])
    assert message.startswith(f"{tmp_path / pack[0]} cannot be read to its end: ")
    assert kept == long_texts[: len(kept)]
    assert len(kept) > 2000
    assert skipped == {"file": 1}


@pytest.mark.parametrize("suffix", ["txt", "md"])
def test_a_text_that_is_not_utf8(tmp_path, suffix):
    (tmp_path / f"m.{suffix}").write_bytes("naïve".encode("latin-1"))
    message, kept, skipped = outcomes(tmp_path / f"m.{suffix}")
    assert message == f"{tmp_path}/m.{suffix} is not UTF-8: byte 2 is 0xef."
    assert (kept, skipped) == ([], {"non-UTF-8 file": 1})


@pytest.mark.parametrize("name", ["m.txt", "m.jsonl", "m.jsonl.gz", "m.jsonl.zst", "m.parquet"])
@pytest.mark.parametrize("how", ["gone", "folder"])
def test_a_file_that_can_no_longer_be_opened(tmp_path, name, how):
    for other in ("0.txt", "z.txt"):
        (tmp_path / other).write_text(other)
    path = tmp_path / name
    path.touch()
    strict, lenient = (Files(str(tmp_path), on_error=on_error) for on_error in ("raise", "skip"))
    unread = lenient.fingerprint
    path.unlink()
    if how == "folder":
        path.mkdir()
    documents = strict.documents()
    assert next(documents).text == "0.txt"
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} cannot be read to its end: .*{re.escape(ADVICE)}$"):
        next(documents)
    assert texts_of(lenient) == ["0.txt", "z.txt"]
    assert lenient.skipped == {"file": 1}
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))} cannot be read: (No such file|Is a directory)"):
        _ = strict.fingerprint
    again = Files([str(tmp_path / "0.txt"), str(tmp_path / "z.txt")], on_error="skip")
    again.files = lenient.files
    assert again.fingerprint != unread


def test_no_such_column(tmp_path):
    write_parquet(tmp_path / "m.parquet", ["one"])
    (tmp_path / "0.txt").write_text("before")
    for on_error in ("raise", "skip"):  # a whole file without its column is a wrong setting, not a bad file
        for settings, missing in (
            ({"text_column": "body"}, "body: choose data.text_column"),
            ({"meta_columns": ["title"]}, "title: choose data.meta_columns"),
        ):
            with pytest.raises(UserError) as error:
                list(Files(str(tmp_path), on_error=on_error, **settings).documents())
            assert str(error.value) == f"{tmp_path}/m.parquet has no column {missing} from number, text."


def test_rows_without_text(tmp_path):
    write_parquet(tmp_path / "m.parquet", ["one", None, "two", None])
    message, kept, skipped = outcomes(tmp_path / "m.parquet")
    assert message.startswith(f"{tmp_path}/m.parquet, row 2: null, not text, in text (its fields: text; choose one")
    assert (kept, skipped) == (["one", "two"], {"row": 2})


@pytest.mark.parametrize(("column", "kind"), [([1, 2], "int"), ([b"a", b"b"], "bytes"), ([["a"], ["b"]], "list")])
def test_a_column_of_another_type(tmp_path, column, kind):
    write_parquet(tmp_path / "m.parquet", column)
    message, kept, skipped = outcomes(tmp_path / "m.parquet")
    assert message.startswith(f"{tmp_path}/m.parquet, row 1: {kind}, not text, in text (its fields: text;")
    assert (kept, skipped) == ([], {"row": 2})


def test_a_parquet_file_with_a_damaged_page(tmp_path, long_texts):
    path = tmp_path / "m.parquet"
    write_parquet(path, long_texts[:1000], row_group_size=300)
    column = pq.read_metadata(path).row_group(1).column(1)
    assert column.path_in_schema == "text"
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    for place in range(begin + 40, begin + column.total_compressed_size - 40, 100):
        data[place : place + 10] = b"\xff" * 10
    path.write_bytes(data)
    message, kept, skipped = outcomes(path)
    assert message.startswith(f"{path} cannot be read to its end: ")
    assert kept == long_texts[:300]
    assert skipped == {"file": 1}


def test_nothing_but_bad_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": "x"}) + "\n" for _ in range(5)))
    source = Files(str(tmp_path), on_error="skip")
    assert texts_of(source) == []
    assert source.skipped == {"row": 5}
