"""Tokenizers: lossless over all of Unicode, exact in bytes, the same every time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data import Tokenizer
from topklm.data.tokenizer import END_OF_TEXT
from topklm.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return Tokenizer.train((document.text for document in corpus), 320)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_round_trip_and_bytes(tokenizer, text):
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


def test_text_that_spells_the_special_token_is_text(tokenizer):
    (ids,) = tokenizer.encode([f"a{END_OF_TEXT}b"])
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
    assert tokenizer.byte_lengths()[tokenizer.eot_id] == 0
    assert tokenizer.decode([*ids, tokenizer.eot_id]) == f"a{END_OF_TEXT}b"


def test_training_is_reproducible(corpus, tokenizer):
    texts = [document.text for document in corpus]
    assert Tokenizer.train(texts, 320).fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(texts, 310).fingerprint != tokenizer.fingerprint


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_a_small_text_gives_a_small_vocabulary():
    assert Tokenizer.train(["aab"], 1000).vocab_size < 1000


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer.json"):
        Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(UserError, match="need 257 or more"):
        Tokenizer.train(["a"], 256)


def test_what_does_not_suit_is_refused(tmp_path):
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match=r"has no <\|endoftext\|> token"):
        Tokenizer(words)
    words.add_special_tokens([END_OF_TEXT])
    with pytest.raises(UserError, match="not a byte-level tokenizer"):
        Tokenizer(words)
