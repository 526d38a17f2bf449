"""From documents to batches: sources, tokenizer, token store, windows by position."""

from .datamodule import TokenData
from .embedded import Embedded
from .prepare import Prepared, TokenizerConfig, prepare
from .source import Document, Source
from .store import TokenStore, TokenStoreWriter
from .tokenizer import Tokenizer

__all__ = [
    "Document",
    "Embedded",
    "Prepared",
    "Source",
    "TokenData",
    "TokenStore",
    "TokenStoreWriter",
    "Tokenizer",
    "TokenizerConfig",
    "prepare",
]
