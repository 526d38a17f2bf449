"""A fixed sample of validation text, with the document and the topic of every token.

Shapes: w windows, t position, g documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.windows import ValidationWindows


@dataclass(frozen=True)
class TokenSample:
    """Windows of text, all on the CPU.

    Attributes:
        ids_wt: (w, t) int64 token ids. document_wt: (w, t) int64, the number of each token's document, from 0.
        topic_g: (g,) int64, the number of each document's topic, -1 where none is known. topics: their names, sorted.
    """

    ids_wt: Tensor
    document_wt: Tensor
    topic_g: Tensor
    topics: tuple[str, ...]


def validation_sample(windows: ValidationWindows, tokens: int, topic: str | None = "topic") -> TokenSample:
    """The windows of a sample of about ``tokens`` tokens (whole windows, one at least, and no more than there are).

    They are spread evenly over the whole split, of which validation may use the first part only: many sources are
    sorted, by topic at that.

    Args:
        topic: the name under which a document's topic stands beside it in the store; None for no topics.
    """
    targets = windows.store.tokens - 1
    length = min(windows.seq_len, targets)
    there = targets // length
    count = max(1, min(there, tokens // length))
    firsts = np.arange(count) * there // count * length
    ids_wt = np.stack([windows.store.read(int(first), length) for first in firsts]).astype(np.int64)
    positions_wt = firsts[:, None] + np.arange(length)
    documents = list(windows.store.documents())
    begins = np.array([document["first"] for document in documents])
    chosen, document_wt = np.unique(np.searchsorted(begins, positions_wt, side="right") - 1, return_inverse=True)
    found = [documents[number].get(topic) if topic is not None else None for number in chosen]
    topics = tuple(sorted({str(name) for name in found if name is not None}))
    numbers = {name: number for number, name in enumerate(topics)}
    topic_g = torch.tensor([-1 if name is None else numbers[str(name)] for name in found])
    return TokenSample(torch.from_numpy(ids_wt), torch.from_numpy(document_wt.reshape(ids_wt.shape)), topic_g, topics)
