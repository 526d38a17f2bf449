"""topklm pretrains language models that can be read: transformers whose hidden states keep only their k largest
entries."""

__version__ = "0.1.0"
