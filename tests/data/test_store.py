"""The token store: what is written is read, across shards, and damage is noticed."""

import json

import numpy as np
import pytest

from topklm.data import TokenStore, TokenStoreWriter
from topklm.errors import UserError


def write(path, documents, vocab_size=300, shard_tokens=1 << 20):
    with TokenStoreWriter(path, vocab_size, eot_id=0, about={"tokenizer": "t1"}, shard_tokens=shard_tokens) as writer:
        for i, document in enumerate(documents):
            writer.append(document, [i + 1] * (i % 7))
    return TokenStore(path, "t1")


@pytest.mark.parametrize("shard_tokens", [1, 10, 64, 1 << 20])
def test_stream_and_documents(corpus, tmp_path, shard_tokens):
    store = write(tmp_path / "s", corpus[:50], shard_tokens=shard_tokens)
    expected = [0] + [token for i in range(50) for token in [*[i + 1] * (i % 7), 0]]
    assert store.tokens == len(expected)
    assert store.read(0, store.tokens).tolist() == expected
    for first, count in ((0, 1), (3, 40), (100, 17), (store.tokens - 1, 1)):
        assert store.read(first, count).tolist() == expected[first : first + count]
    entries = list(store.documents())
    assert [entry["id"] for entry in entries] == [document.id for document in corpus[:50]]
    for i, entry in enumerate(entries):
        assert (entry["topic"], entry["bytes"]) == (corpus[i].meta["topic"], len(corpus[i].text.encode()))
        assert store.read(entry["first"], entry["tokens"]).tolist() == [i + 1] * (i % 7)
    store.verify()


def test_type_follows_the_vocabulary(corpus, tmp_path):
    assert write(tmp_path / "small", corpus[:3], 65536).dtype == np.uint16
    assert write(tmp_path / "large", corpus[:3], 65537).dtype == np.uint32


def test_an_error_while_writing_leaves_nothing(corpus, tmp_path):
    with pytest.raises(RuntimeError), TokenStoreWriter(tmp_path / "s", 300, 0, {}) as writer:
        writer.append(corpus[0], [1, 2])
        raise RuntimeError
    assert not (tmp_path / "s").exists()


def test_damage_is_noticed(corpus, tmp_path):
    store = write(tmp_path / "s", corpus[:20])
    shard = tmp_path / "s" / "shard_00000.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-2])
    with pytest.raises(UserError, match="bytes where its manifest says"):
        TokenStore(tmp_path / "s")
    shard.write_bytes(b"\x07\x00" + data[2:])
    with pytest.raises(UserError, match="has changed since it was written"):
        TokenStore(tmp_path / "s").verify()
    shard.unlink()
    with pytest.raises(UserError, match="holds 0 bytes"):
        TokenStore(tmp_path / "s")
    assert store.manifest["documents"] == 20


def test_what_is_no_store_of_ours_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="is not a token store"):
        TokenStore(tmp_path)
    write(tmp_path / "s", corpus[:3])
    with pytest.raises(UserError, match="written with tokenizer t1, not with t2"):
        TokenStore(tmp_path / "s", "t2")
    manifest = tmp_path / "s" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(UserError, match="newer topklm"):
        TokenStore(tmp_path / "s")
    manifest.write_text(json.dumps(content | {"format": "other"}))
    with pytest.raises(UserError, match="format 'other'"):
        TokenStore(tmp_path / "s")
    manifest.write_text("{")
    with pytest.raises(UserError, match="is not a token store"):
        TokenStore(tmp_path / "s")
