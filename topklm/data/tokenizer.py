"""Byte-level BPE tokenizers: trained here or loaded from a file, with a fingerprint.

Byte-level means that every string can be encoded, that decoding gives it back exactly, and that every token stands for
a known number of bytes, which bits per byte need.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..errors import UserError
from ..files import atomic_path

END_OF_TEXT = "<|endoftext|>"
OTHER_END_OF_TEXT = ("<|end_of_text|>", "</s>", "<|eot_id|>", "<eos>")  # what other families call it
NEVER_IN_UTF8 = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}  # as the byte-level alphabet spells them
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, which JSON may hold and UTF-8 may not


class Tokenizer:
    """A ``tokenizers.Tokenizer`` that is known to be byte-level and to have an end-of-text token.

    Args:
        inner: the tokenizer. origin: what to call it in an error.
        end_of_text: its end-of-text token; None looks for the usual names. setting: the one that gives it.

    Attributes:
        vocab_size: number of tokens. eot_id: id of the end-of-text token. fingerprint: changes when any encoding could.

    Raises:
        UserError: not byte-level, or without an end-of-text token.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        origin: str = "the tokenizer",
        end_of_text: str | None = None,
        setting: str = "tokenizer.end_of_text",
    ) -> None:
        self.inner = inner
        inner.encode_special_tokens = True  # text that spells a special token is encoded as text
        inner.no_truncation()
        inner.no_padding()
        self.vocab_size = max(inner.get_vocab().values(), default=-1) + 1  # ids may have gaps
        names = [end_of_text] if end_of_text else [END_OF_TEXT, *OTHER_END_OF_TEXT]
        found = [id_ for id_ in map(inner.token_to_id, names) if id_ is not None]
        if not found:
            raise UserError(
                f"{origin} has no {' or '.join(names)} token: name the one that ends its texts with {setting}=..."
            )
        self.eot_id: int = found[0]
        if not isinstance(inner.decoder, decoders.ByteLevel):
            raise UserError(
                f"{origin} is not a byte-level tokenizer: topklm needs one, so that bits per byte are exact."
            )
        lacking = sum(inner.token_to_id(byte) is None for byte in _alphabet() if byte not in NEVER_IN_UTF8)
        if lacking:
            raise UserError(
                f"{origin} has no token for {lacking} of the bytes that text is made of, and would drop them: train it "
                f"with the whole byte-level alphabet."
            )
        self.fingerprint = hashlib.sha256(f"{inner.to_str()}{self.eot_id}".encode()).hexdigest()[:16]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, show_progress: bool = False) -> Tokenizer:
        """Learns a byte-level BPE of ``vocab_size`` tokens (the 256 bytes and the end-of-text token included)."""
        if vocab_size < 257:
            raise UserError(f"tokenizer.vocab_size={vocab_size}: the 256 bytes and {END_OF_TEXT} need 257 or more.")
        inner = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=_alphabet(),
            show_progress=show_progress,
        )
        inner.train_from_iterator(map(_whole_characters, texts), trainer)
        return cls(inner)

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """A token for each byte, and the end-of-text token: nothing to train."""
        vocabulary = {token: id_ for id_, token in enumerate([END_OF_TEXT, *_alphabet()])}
        inner = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
        inner.add_special_tokens([END_OF_TEXT])
        return cls(inner)

    @classmethod
    def load(cls, path: str | Path, end_of_text: str | None = None) -> Tokenizer:
        """Reads a ``tokenizer.json``. Raises UserError if it is missing or not one."""
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist: give the path of a tokenizer.json.")
        return cls.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path), end_of_text)

    @classmethod
    def from_hub(cls, repo: str, revision: str | None = None, end_of_text: str | None = None) -> Tokenizer:
        """The ``tokenizer.json`` of a model on the Hugging Face hub, from the local cache where it is known already.

        Raises:
            UserError: there is none, or the hub cannot be reached.
        """
        from huggingface_hub import hf_hub_download

        try:
            return cls.load(hf_hub_download(repo, "tokenizer.json", revision=revision), end_of_text)
        except UserError:
            raise
        except Exception as error:  # network, permission and name errors are of many types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"tokenizer.repo={repo} cannot be read from the hub ({type(error).__name__}: {reason}): check the name "
                f"and the network, or use tokenizer=file with a tokenizer.json you have."
            ) from error

    @classmethod
    def from_json(
        cls,
        text: str,
        origin: str = "the tokenizer",
        end_of_text: str | None = None,
        setting: str = "tokenizer.end_of_text",
    ) -> Tokenizer:
        """Reads the content of a ``tokenizer.json``; ``origin`` names it in an error, and ``setting`` what to set."""
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for anything it cannot parse
            raise UserError(f"{origin} is not a tokenizer.json: {error}.") from error
        return cls(inner, origin, end_of_text, setting)

    def save(self, path: Path) -> None:
        """Writes a ``tokenizer.json``, whole or not at all."""
        with atomic_path(path) as scratch:
            scratch.write_text(self.inner.to_str(pretty=True), encoding="utf-8")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text. Text that spells a special token is encoded as the bytes it is, never as the
        token; half a character as U+FFFD."""
        encodings = self.inner.encode_batch_fast([*map(_whole_characters, texts)], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same as arrays, (n,) uint32 each."""
        return [np.array(ids, dtype=np.uint32) for ids in self.encode(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; end-of-text is left out, and bytes that are no UTF-8 become U+FFFD."""
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: UTF-8 bytes that each token stands for; special tokens stand for none."""
        return self._byte_lengths

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, id_ in self.inner.get_vocab().items():
            lengths[id_] = len(token)  # in the byte-level alphabet one character stands for one byte
        for id_, added in self.inner.get_added_tokens_decoder().items():  # these are written as they are
            lengths[id_] = 0 if added.special else len(added.content.encode())
        lengths[self.eot_id] = 0
        return lengths


def with_all_bytes(text: str) -> tuple[str, int]:
    """A byte-level ``tokenizer.json`` with a token for each byte that text is made of, and how many were added, behind
    all others. Tokenizers trained without the whole alphabet lack bytes that their text did not have."""
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    number = max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])], default=-1) + 1
    lacking = [byte for byte in _alphabet() if byte not in vocabulary and byte not in NEVER_IN_UTF8]
    vocabulary.update({byte: number + i for i, byte in enumerate(lacking)})
    return json.dumps(content, ensure_ascii=False), len(lacking)


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _whole_characters(text: str) -> str:
    return text if text.isascii() else HALF_CHARACTER.sub("\ufffd", text)
