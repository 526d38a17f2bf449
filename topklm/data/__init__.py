"""From documents to windows of tokens: sources, tokenizer, token store, background writer, order.

What tokenizes runs in processes that need no torch, so nothing here imports it; ``windows`` and ``datamodule``, which
do, are imported by name.
"""

from .builder import Split
from .prepare import Choice, Prepared, prepare
from .sources import Document, Embedded, Files, Hub, Mixture, Source, Tokens
from .store import TokenStore
from .store_writer import TokenStoreWriter
from .tokenizer import Tokenizer
from .tokenizer_config import TokenizerConfig

__all__ = [
    "Choice",
    "Document",
    "Embedded",
    "Files",
    "Hub",
    "Mixture",
    "Prepared",
    "Source",
    "Split",
    "TokenStore",
    "TokenStoreWriter",
    "Tokenizer",
    "TokenizerConfig",
    "Tokens",
    "prepare",
]
