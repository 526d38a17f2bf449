"""Sources of documents, one kind a file."""

from .base import Document, Source, is_validation
from .embedded import Embedded
from .files import Files
from .hub import Hub
from .mixture import Mixture
from .tokens import Tokens

__all__ = ["Document", "Embedded", "Files", "Hub", "Mixture", "Source", "Tokens", "is_validation"]
