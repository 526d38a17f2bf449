"""Byte-level BPE tokenizers: trained here or loaded from a file, with a fingerprint.

Byte-level means that every string can be encoded, that decoding gives it back exactly, and that every token stands for
a known number of bytes, which bits per byte need.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..errors import UserError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A ``tokenizers.Tokenizer`` that is known to be byte-level and to have an end-of-text token.

    Attributes:
        vocab_size: number of tokens. eot_id: id of the end-of-text token. fingerprint: changes when any encoding could.

    Raises:
        UserError: not byte-level, or without an end-of-text token.
    """

    def __init__(self, inner: tokenizers.Tokenizer, origin: str = "tokenizer") -> None:
        self.inner = inner
        inner.encode_special_tokens = True  # text that spells a special token is encoded as text
        self.vocab_size = inner.get_vocab_size()
        eot_id = inner.token_to_id(END_OF_TEXT)
        if eot_id is None:
            raise UserError(f"{origin} has no {END_OF_TEXT} token: add it as a special token.")
        self.eot_id: int = eot_id
        if not isinstance(inner.decoder, decoders.ByteLevel):
            raise UserError(
                f"{origin} is not a byte-level tokenizer: topklm needs one, so that bits per byte are exact."
            )
        self.fingerprint = hashlib.sha256(inner.to_str().encode()).hexdigest()[:16]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns a byte-level BPE of ``vocab_size`` tokens (the 256 bytes and the end-of-text token included)."""
        if vocab_size < 257:
            raise UserError(f"tokenizer.vocab_size={vocab_size}: the 256 bytes and {END_OF_TEXT} need 257 or more.")
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a ``tokenizer.json``. Raises UserError if it is missing or not one."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist: give the path of a tokenizer.json.")
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")), str(path))
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for anything it cannot parse
            raise UserError(f"{path} is not a tokenizer.json: {error}.") from error

    def save(self, path: Path) -> None:
        path.write_text(self.inner.to_str(pretty=True), encoding="utf-8")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text. Text that spells a special token is encoded as the bytes it is, never as the
        token."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; end-of-text is left out, and bytes that are no UTF-8 become U+FFFD."""
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: UTF-8 bytes that each token stands for; special tokens stand for none."""
        special = {token.content for token in self.inner.get_added_tokens_decoder().values()}
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, id_ in self.inner.get_vocab().items():
            # In the byte-level alphabet one character stands for one byte.
            lengths[id_] = 0 if token in special else len(token)
        return lengths

    def describe(self) -> dict[str, object]:
        return {
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
            "model": json.loads(self.inner.to_str())["model"]["type"],
        }
