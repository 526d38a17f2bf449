"""Sources of documents, one kind a file."""

from .base import Document, Source, beginning, is_validation, read_documents, reading
from .embedded import Embedded
from .files import Files
from .hub import Hub
from .mixture import Mixture
from .tokens import Tokens

__all__ = [
    "Document",
    "Embedded",
    "Files",
    "Hub",
    "Mixture",
    "Source",
    "Tokens",
    "beginning",
    "is_validation",
    "read_documents",
    "reading",
]
