"""The token store: what is written is read, across shards, while it grows, after a kill; and damage is noticed."""

import json

import numpy as np
import pytest

from topklm.data import Choice, Split, TokenizerConfig, TokenStore, TokenStoreWriter
from topklm.data.store_writer import shard_capacity
from topklm.errors import UserError

ABOUT = {"tokenizer": "t1"}


def writer_of(path, shard_tokens=1 << 20, vocab_size=300, about=ABOUT):
    return TokenStoreWriter(path, vocab_size, eot_id=0, about=about, capacity=lambda number: shard_tokens)


def ids_of(i):
    return np.full(i % 7, i + 1, dtype=np.uint32)


def write(path, documents, vocab_size=300, shard_tokens=1 << 20, complete=True):
    writer = writer_of(path, shard_tokens, vocab_size)
    for i, document in enumerate(documents):
        writer.append(document, ids_of(i), document.size)
        if writer.is_full:
            writer.seal(i + 1)
    writer.seal(len(documents), complete=complete)
    return TokenStore(path, "t1", growing=not complete)


def stream(n):
    return [0] + [token for i in range(n) for token in [*ids_of(i).tolist(), 0]]


@pytest.mark.parametrize("shard_tokens", [1, 10, 64, 1 << 20])
def test_stream_and_documents(corpus, tmp_path, shard_tokens):
    store = write(tmp_path / "s", corpus[:50], shard_tokens=shard_tokens)
    expected = stream(50)
    assert store.tokens == len(expected)
    assert store.read(0, store.tokens).tolist() == expected
    for first, count in ((0, 1), (3, 40), (100, 17), (store.tokens - 1, 1), (5, 0)):
        assert store.read(first, count).tolist() == expected[first : first + count]
    entries = list(store.documents())
    assert [entry["id"] for entry in entries] == [document.id for document in corpus[:50]]
    for i, entry in enumerate(entries):
        assert (entry["topic"], entry["bytes"]) == (corpus[i].meta["topic"], len(corpus[i].text.encode()))
        assert store.read(entry["first"], entry["tokens"] + 2).tolist() == [0, *ids_of(i).tolist(), 0]
    by_shard = [entry for number in range(len(store.shards)) for entry in store.documents(number)]
    assert by_shard == entries
    store.verify()


def test_type_follows_the_vocabulary(corpus, tmp_path):
    assert write(tmp_path / "small", corpus[:3], 65536).dtype == np.uint16
    large = write(tmp_path / "large", corpus[:3], 65537)
    assert large.dtype == np.uint32
    assert large.read(0, large.tokens).tolist() == stream(3)


def test_shards_grow_and_then_stay():
    sizes = [shard_capacity(number) for number in range(200)]
    assert sizes[:6] == [1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 25]
    assert set(sizes[6:]) == {1 << 25}


def test_a_growing_store_shows_what_is_published(corpus, tmp_path):
    store = TokenStore(tmp_path / "s", "t1", growing=True)
    assert (store.tokens, store.complete) == (0, False)
    writer = writer_of(tmp_path / "s")
    writer.append(corpus[0], ids_of(3), 1)
    store.refresh()
    assert store.tokens == 0
    writer.seal("here")
    store.refresh()
    assert store.read(0, store.tokens).tolist() == [0, 4, 4, 4, 0]
    with pytest.raises(UserError, match="is not complete: prepare it again"):
        TokenStore(tmp_path / "s")
    writer.append(corpus[1], ids_of(1), 1)
    writer.seal("there", complete=True)
    store.refresh()
    assert store.complete
    assert store.read(4, 3).tolist() == [0, 2, 0]
    assert TokenStore(tmp_path / "s").tokens == 7


def test_a_killed_writer_goes_on_after_its_last_shard(corpus, tmp_path):
    whole = write(tmp_path / "whole", corpus[:50], shard_tokens=40)
    write(tmp_path / "s", corpus[:20], shard_tokens=40, complete=False)
    killed = writer_of(tmp_path / "s", 40)
    killed.append(corpus[20], ids_of(20), 1)  # never sealed: the process is gone
    writer = writer_of(tmp_path / "s", 40)
    assert writer.continues_after == 20
    assert not list((tmp_path / "s").glob(".*.tmp"))
    for i in range(20, 50):
        writer.append(corpus[i], ids_of(i), corpus[i].size)
        if writer.is_full:
            writer.seal(i + 1)
    writer.seal(50, complete=True)
    store = TokenStore(tmp_path / "s")
    assert store.read(0, store.tokens).tolist() == whole.read(0, whole.tokens).tolist()
    assert [e["first"] for e in store.documents()] == [e["first"] for e in whole.documents()]


def test_a_store_begun_with_something_else_is_refused(corpus, tmp_path):
    write(tmp_path / "s", corpus[:5], complete=False)
    with pytest.raises(UserError, match="was begun with tokenizer t1, not t2"):
        writer_of(tmp_path / "s", about={"tokenizer": "t2"})


def test_a_dropped_shard_comes_back_the_same_or_not_at_all(corpus, tmp_path):
    store = write(tmp_path / "s", corpus[:50], shard_tokens=40)
    expected = store.read(0, store.tokens).tolist()
    writer = writer_of(tmp_path / "s", 40)
    before = writer.bytes_on_disk()
    writer.drop(1)
    assert not writer.has(1)
    assert writer.bytes_on_disk() == before - 2 * store.shards[1]["tokens"]
    numbers = [int(entry["id"].removeprefix("doc")) for entry in store.documents(1)]
    for change in (1, 0):
        shard = writer.begin_again(1)
        for i in numbers:
            shard.append(corpus[i], ids_of(i) + change, corpus[i].size)
        if change:
            with pytest.raises(UserError, match=r"source of .* has changed: shard 1"):
                writer.put_back(1, shard)
            assert not writer.has(1)
        else:
            writer.put_back(1, shard)
    assert store.read(0, store.tokens).tolist() == expected
    store.verify()


def test_damage_is_noticed(corpus, tmp_path):
    write(tmp_path / "s", corpus[:20])
    shard = tmp_path / "s" / "shard_00000.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-2])
    with pytest.raises(UserError, match="bytes where its manifest says"):
        TokenStore(tmp_path / "s")
    shard.write_bytes(b"\x07\x00" + data[2:])
    with pytest.raises(UserError, match="has changed since it was written"):
        TokenStore(tmp_path / "s").verify()
    shard.write_bytes(b"\xff\xff" + data[2:])
    with pytest.raises(UserError, match="is damaged: it holds tokens that its tokenizer does not have"):
        TokenStore(tmp_path / "s").read(0, 5)
    shard.write_bytes(data)
    index = tmp_path / "s" / "shard_00000.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    for damaged in ("".join(lines[:-1]), "".join(lines[:-1]) + lines[-1][:9]):
        index.write_text(damaged)
        with pytest.raises(UserError, match="shard_00000.jsonl is missing or damaged: delete"):
            TokenStore(tmp_path / "s").verify()
    index.unlink()
    for read in (TokenStore.verify, lambda store: list(store.documents())):
        with pytest.raises(UserError, match="shard_00000.jsonl is missing or damaged: delete"):
            read(TokenStore(tmp_path / "s"))
    shard.unlink()
    with pytest.raises(UserError, match="holds 0 bytes"):
        TokenStore(tmp_path / "s")


def test_a_shard_without_its_index_is_made_again(corpus, list_source, tmp_path):
    choice = Choice(list_source(corpus[:200]), TokenizerConfig(name="bytes"), Split(0.1), tmp_path)
    choice.build()
    index = choice.folder / "train" / "shard_00000.jsonl"
    before = index.read_bytes()
    index.unlink()
    assert not choice.is_complete
    choice.build()
    assert choice.is_complete
    assert index.read_bytes() == before


def test_what_is_no_store_of_ours_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="is not a token store"):
        TokenStore(tmp_path)
    write(tmp_path / "s", corpus[:3])
    with pytest.raises(UserError, match="written with tokenizer t1, not with t2"):
        TokenStore(tmp_path / "s", "t2")
    manifest = tmp_path / "s" / "manifest.json"
    content = json.loads(manifest.read_text())
    for changes, message in (
        ({"version": 99}, "a newer topklm"),
        ({"version": 1}, "an older topklm"),
        ({"format": "other"}, "does not say format topklm-token-store"),
    ):
        manifest.write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=message):
            TokenStore(tmp_path / "s")
        with pytest.raises(UserError, match=message):
            writer_of(tmp_path / "s")
    manifest.write_text("{")
    with pytest.raises(UserError, match="is not a token store"):
        TokenStore(tmp_path / "s")


def test_two_billion_tokens_open_at_once_and_are_read_across_shards(tmp_path):
    """A sparse store: the files have their length and hold nothing, but for two marks."""
    writer = TokenStoreWriter(tmp_path / "s", 300, 0, ABOUT)
    tokens = 0
    while tokens < 2_000_000_000:
        number = len(writer.shards)
        size = shard_capacity(number)
        with open(tmp_path / "s" / f"shard_{number:05d}.bin", "wb") as file:
            file.truncate(2 * size)
        entry = {"name": f"shard_{number:05d}", "tokens": size, "documents": 0, "text_bytes": 0, "sha256": ""}
        writer.shards.append(entry)
        tokens += size
    writer.seal(None, complete=True)
    boundary = sum(shard_capacity(number) for number in range(40))
    for number, offset in ((39, 2 * shard_capacity(39) - 2), (40, 0)):
        with open(tmp_path / "s" / f"shard_{number:05d}.bin", "r+b") as file:
            file.seek(offset)
            file.write(b"\x2a\x00")
    store = TokenStore(tmp_path / "s", "t1")
    assert store.tokens == tokens
    assert store.read(boundary - 2, 4).tolist() == [0, 42, 42, 0]
