"""Which tokenizer a run has, before there is one."""

from __future__ import annotations

from dataclasses import dataclass

from .tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer.

    Attributes:
        name: ``bpe``, a byte-level BPE trained on the training split; ``file``; ``hub``; or ``bytes``, a token for each
            byte.
        vocab_size: tokens of the BPE to train. train_bytes: how much text to train it on, from the beginning.
        path: a ``tokenizer.json``, for ``file``. repo, revision: a model on the hub, for ``hub``.
        end_of_text: its end-of-text token; None looks for the usual names.
    """

    name: str = "bpe"
    vocab_size: int = 4096
    train_bytes: int = 100_000_000
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    end_of_text: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ("bpe", "file", "hub", "bytes"):
            raise ValueError(f"tokenizer.name={self.name}: choose from bpe, file, hub, bytes.")
        if self.name == "bpe" and self.vocab_size < 257:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size}: 256 bytes and the end-of-text token need 257 or more."
            )
        if self.train_bytes < 1:
            raise ValueError(f"tokenizer.train_bytes={self.train_bytes}: give 1 or more.")
        if self.name == "file" and self.path is None:
            raise ValueError("tokenizer=file needs tokenizer.path=..., a tokenizer.json.")
        if self.name != "file" and self.path is not None:
            raise ValueError(
                f"tokenizer.path={self.path} is used by tokenizer=file, not by {self.name}: add tokenizer=file."
            )
        for setting in ("repo", "revision"):
            value = getattr(self, setting)
            if self.name != "hub" and value is not None:
                raise ValueError(
                    f"tokenizer.{setting}={value} is used by tokenizer=hub, not by {self.name}: add tokenizer=hub."
                )
        if self.name in ("bpe", "bytes") and self.end_of_text is not None:
            raise ValueError(
                f"tokenizer.end_of_text={self.end_of_text}: tokenizer={self.name} has its own, <|endoftext|>: leave it "
                f"out."
            )
        if self.name == "hub" and self.repo is None:
            raise ValueError("tokenizer=hub needs tokenizer.repo=..., the name of a model on the hub.")

    @property
    def described(self) -> str:
        """In a few words."""
        trained = f"byte-level BPE of {self.vocab_size:,} tokens"
        return {"bpe": trained, "bytes": "a token for each byte"}.get(self.name) or str(self.path or self.repo)

    def given(self) -> Tokenizer | None:
        """The tokenizer, unless it is to be trained."""
        if self.name == "file":
            assert self.path is not None
            return Tokenizer.load(self.path, self.end_of_text)
        if self.name == "hub":
            assert self.repo is not None
            return Tokenizer.from_hub(self.repo, self.revision, self.end_of_text)
        return Tokenizer.of_bytes() if self.name == "bytes" else None
