"""Tokenizers: lossless over all of Unicode, exact in bytes, the same every time, wherever they come from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from topklm.data import Tokenizer
from topklm.data.tokenizer import END_OF_TEXT
from topklm.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return Tokenizer.train((document.text for document in corpus), 320)


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def either(request, tokenizer):
    return tokenizer if request.param == "bpe" else Tokenizer.of_bytes()


def changed(tokenizer, **changes):
    """The same ``tokenizer.json`` with other content under these keys."""
    return json.dumps(json.loads(tokenizer.inner.to_str()) | changes)


def with_tokens(*names, special=True):
    """The bytes, and further added tokens."""
    inner = Tokenizer.of_bytes().inner
    (inner.add_special_tokens if special else inner.add_tokens)(list(names))
    return inner


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet="aé漢🦊 \n\t\r\x00\x1b\x7f\x85\ufeff\u200d\u0301\ufffd\U0010ffff"))
def test_round_trip_and_bytes(either, text):
    (ids,) = either.encode([text])
    assert either.decode(ids) == text
    assert either.byte_lengths()[ids].sum() == len(text.encode())
    assert max(ids, default=0) < either.vocab_size


@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_arrays_are_the_same(either, texts):
    arrays = either.encode_arrays(texts)
    assert [array.tolist() for array in arrays] == either.encode(texts)
    assert all(array.dtype.name == "uint32" and array.ndim == 1 for array in arrays)


def check_many_characters(tokenizer):
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 97)]))
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


def test_many_characters(either):
    check_many_characters(either)


def test_half_a_character(either):
    """A lone surrogate, as JSON may hold it, is as long as what stands in for it."""
    text = "a\ud83db\udc00"
    (ids,) = either.encode([text])
    assert either.decode(ids) == "a\ufffdb\ufffd"
    assert either.byte_lengths()[ids].sum() == len(text.encode("utf-8", "surrogatepass"))
    assert Tokenizer.train([text], 300).encode(["a\ufffdb\ufffd"]) == Tokenizer.train([text], 300).encode([text])


def test_text_that_spells_the_special_token_is_text(either):
    (ids,) = either.encode([f"a{END_OF_TEXT}b"])
    assert either.eot_id not in ids
    assert either.decode(ids) == f"a{END_OF_TEXT}b"
    assert either.byte_lengths()[either.eot_id] == 0
    assert either.decode([*ids, either.eot_id]) == f"a{END_OF_TEXT}b"


def test_the_tokenizer_of_bytes():
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.vocab_size == 257
    assert sorted(tokenizer.inner.get_vocab().values()) == list(range(257))
    text = "".join(map(chr, range(0x800))) + "漢🦊" + END_OF_TEXT
    (ids,) = tokenizer.encode([text])
    assert len(ids) == len(text.encode())
    spoken = dict(zip(ids, text.encode(), strict=True))
    assert [spoken[id_] for id_ in ids] == list(text.encode())  # a token stands for one byte ...
    assert len(set(spoken.values())) == len(spoken)  # ... and no two for the same
    lengths = tokenizer.byte_lengths().tolist()
    assert lengths.pop(tokenizer.eot_id) == 0
    assert lengths == [1] * 256
    assert Tokenizer.of_bytes().fingerprint == tokenizer.fingerprint


def test_byte_lengths_are_those_of_each_token_alone(tokenizer):
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    for id_ in range(tokenizer.vocab_size):
        text = tokenizer.decode([id_])
        if "\ufffd" not in text:
            assert lengths[id_] == len(text.encode())
    assert lengths.max() > 3


def test_added_tokens_that_are_not_special_are_text():
    """As GPT-NeoX has them for runs of spaces."""
    tokenizer = Tokenizer(with_tokens("    ", "  ", "日本", special=False))
    text = "if x:\n        pass  # 日本  日"
    (ids,) = tokenizer.encode([text])
    assert len(ids) < len(text.encode()) - 6
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


def test_other_special_tokens_are_never_made_of_text():
    tokenizer = Tokenizer(with_tokens("<|pad|>", "<mask>"))
    (ids,) = tokenizer.encode(["<|pad|><mask>"])
    assert len(ids) == len("<|pad|><mask>")
    assert tokenizer.byte_lengths()[[257, 258]].tolist() == [0, 0]


def test_ids_may_have_gaps():
    content = json.loads(Tokenizer.of_bytes().inner.to_str())
    content["model"]["vocab"]["a"] = 400
    tokenizer = Tokenizer.from_json(json.dumps(content))
    (ids,) = tokenizer.encode(["ab"])
    assert ids[0] == 400
    assert tokenizer.vocab_size == 401
    assert tokenizer.byte_lengths()[ids].tolist() == [1, 1]


def test_training_is_reproducible(corpus, tokenizer):
    texts = [document.text for document in corpus]
    assert Tokenizer.train(texts, 320).fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(texts, 310).fingerprint != tokenizer.fingerprint
    assert Tokenizer.train(texts[:100], 320).fingerprint != tokenizer.fingerprint
    assert tokenizer.vocab_size == 320


def test_save_and_load(either, tmp_path):
    either.save(tmp_path / "tokenizer.json")
    text = f"The river, é 漢 🦊{END_OF_TEXT}"
    for path in (tmp_path / "tokenizer.json", tmp_path, str(tmp_path)):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == either.fingerprint
        assert loaded.encode([text]) == either.encode([text])


def test_settings_of_a_file_that_would_change_the_ids_are_undone(tokenizer):
    """A tokenizer.json may cut, pad and frame what it encodes."""
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END_OF_TEXT,
    }
    framed = tokenizers.Tokenizer.from_str(changed(tokenizer, truncation=truncation, padding=padding))
    framed.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, tokenizer.eot_id)]
    )
    text = "the river of the city"
    assert len(framed.encode(text).ids) == 64
    assert Tokenizer(framed).encode([text]) == tokenizer.encode([text])


def test_a_small_text_gives_a_small_vocabulary():
    assert Tokenizer.train(["aab"], 1000).vocab_size < 1000


def test_which_token_ends_a_text(tmp_path):
    inner = with_tokens("</s>", "<|stop|>")
    ends = {name: inner.token_to_id(name) for name in (END_OF_TEXT, "</s>", "<|stop|>")}
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    loaded = {name: Tokenizer.load(tmp_path, end_of_text=name) for name in (None, *ends)}
    assert loaded[None].eot_id == ends[END_OF_TEXT]
    assert {name: loaded[name].eot_id for name in ends} == ends
    assert len({tokenizer.fingerprint for tokenizer in loaded.values()}) == 3
    assert loaded[None].fingerprint == loaded[END_OF_TEXT].fingerprint
    for tokenizer in loaded.values():
        assert tokenizer.byte_lengths()[tokenizer.eot_id] == 0
        (ids,) = tokenizer.encode(["a<|stop|></s>"])
        assert len(ids) == len("a<|stop|></s>")
    with pytest.raises(
        UserError, match=r"tokenizer\.json has no <\|nope\|> token: name the one that ends its texts with tok"
    ):
        Tokenizer.load(tmp_path, end_of_text="<|nope|>")


@pytest.mark.parametrize("name", ["<|end_of_text|>", "</s>", "<|eot_id|>", "<eos>"])
def test_other_families_names_are_found(name):
    tokenizer = Tokenizer.from_json(Tokenizer.of_bytes().inner.to_str().replace(END_OF_TEXT, name))
    assert tokenizer.inner.id_to_token(tokenizer.eot_id) == name


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json does not exist: give the path of a tokenizer\.json\."):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        Tokenizer.load(tmp_path)
    for content in (b"{}", b"", b"\xff\xfe", b"[1]", b'{"model": {"type": "BPE"}}'):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.json is not a tokenizer\.json: "):
            Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(UserError, match="need 257 or more"):
        Tokenizer.train(["a"], 256)


def test_what_does_not_suit_is_refused(tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(
        UserError, match=r"has no <\|endoftext\|> or .* or <eos> token: name the one that ends its texts with"
    ):
        Tokenizer(words)
    words.add_special_tokens([END_OF_TEXT])
    with pytest.raises(UserError, match="not a byte-level tokenizer"):
        Tokenizer(words)


def test_a_tokenizer_that_would_drop_bytes_is_refused():
    """One that was trained without the whole alphabet, as tutorials do."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(["abc abc"], trainers.BpeTrainer(special_tokens=[END_OF_TEXT], show_progress=False))
    assert inner.encode("xyz").ids == []
    with pytest.raises(UserError, match="mine has no token for 239 of the bytes that text is made of, and would drop"):
        Tokenizer(inner, "mine")
    alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in "ÀÁõö÷øùúûüýþÿ"]  # these are in no UTF-8
    assert len(alphabet) == 243
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={c: id_ for id_, c in enumerate([END_OF_TEXT, *alphabet])}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    check_many_characters(Tokenizer(inner))


OFFLINE = """
from topklm.data import Tokenizer
from topklm.errors import UserError
for repo in ("someone/known", "nobody-at-all/no-such-model"):
    for end_of_text in (None, "<|stop|>"):
        try:
            print(Tokenizer.from_hub(repo, end_of_text=end_of_text).eot_id)
        except UserError as error:
            print(error)
"""


def test_from_the_hub_without_a_network(tmp_path):
    """What is in the hub's cache is found; for what is not, one sentence says what to do."""
    inner = with_tokens("<|stop|>")
    snapshot = tmp_path / "hub" / "models--someone--known" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text(inner.to_str())
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    known, named, *messages = ended.stdout.splitlines()
    assert [int(known), int(named)] == [inner.token_to_id(END_OF_TEXT), inner.token_to_id("<|stop|>")]
    assert len(messages) == 2
    for message in messages:
        assert message.startswith("tokenizer.repo=nobody-at-all/no-such-model cannot be read from the hub (")
        assert message.endswith(
            "): check the name and the network, or use tokenizer=file with a tokenizer.json you have."
        )
