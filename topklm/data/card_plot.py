"""The picture of a data card: how long documents are, and how often tokens occur."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .card import Card

MAX_TICKS = 8
FEW_TOKENS = 500  # up to so many, each is a dot


def plot_card(card: Card, target: Path) -> None:
    """Draws the histogram of lengths, and token frequency against rank, into ``target`` (PNG)."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    total = card.total
    limited = f" (limit={card.limit})" if total.documents + card.empty == card.limit else ""
    figure.suptitle(
        f"{card.source}: {total.documents:,} documents{limited}, {total.tokens:,} tokens, "
        f"{card.bytes_per_token:.2f} bytes per token"
    )
    _lengths(axes[0], card)
    _frequencies(axes[1], card)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _lengths(axis: Axes, card: Card) -> None:
    lengths = card.lengths
    documents, tokens = (100 * counts / counts.sum() for counts in (lengths.documents, lengths.tokens))
    axis.stairs(documents, lengths.edges, fill=True, alpha=0.45, color="tab:blue", label="documents")
    axis.stairs(tokens, lengths.edges, color="tab:orange", linewidth=1.8, label="tokens, by length of document")
    axis.axvline(lengths.median, color="black", linewidth=1, linestyle="--", label=f"median {lengths.median:,.0f}")
    axis.axvline(
        lengths.p95, color="black", linewidth=1, linestyle=":", label=f"95% of documents below {lengths.p95:,.0f}"
    )
    axis.set_xscale("log", base=2)
    octaves = [int(edge) for edge in lengths.edges if int(edge).bit_count() == 1]
    ticks = octaves[:: -(-len(octaves) // MAX_TICKS)] if octaves else [lengths.min]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xlabel("length of document (tokens, log scale)")
    axis.set_ylabel("share (% per bin)")
    axis.set_title("Length of documents")
    axis.set_ylim(0, 1.2 * max(documents.max(), tokens.max()))  # room for the legend, over all bars
    axis.legend(loc="upper center", ncols=2, framealpha=1, fontsize="small")


def _frequencies(axis: Axes, card: Card) -> None:
    counts = np.sort(card.token_counts[card.token_counts > 0])[::-1]
    few = len(counts) <= FEW_TOKENS
    axis.loglog(np.arange(1, len(counts) + 1), counts, marker="." if few else None, linewidth=1.2 if few else 1.8)
    axis.set_xlabel("rank of token (1: the most frequent, log scale)")
    axis.set_ylabel("occurrences (log scale)")
    axis.set_title(
        f"Token frequency: {card.vocab_used:,} of {card.vocab_size:,} tokens occur "
        f"({card.vocab_used / card.vocab_size:.1%})"
    )
