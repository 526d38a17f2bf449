"""A data card as tables to read."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from .builder import describe_skipped
from .card import EXCERPT, Amount, Card, Lengths

BAR = 24  # characters of the longest bar


def card_text(card: Card) -> RenderableType:
    """The card as tables to print."""
    tables = [_facts(card), _amounts("Split", "side", card, {"train": card.train, "validation": card.validation})]
    if card.parts:
        amounts = {f"{name} (asked: {part.asked:.1%})": part.amount for name, part in card.parts.items()}
        tables.append(_amounts("Parts of the mixture", "part (share of the text)", card, amounts))
    tables += [_lengths(card.lengths), _samples(card)]
    return Group(*(line for table in tables for line in (table, "")))


def _facts(card: Card) -> Table:
    total = card.total
    passed_over = f"{describe_skipped(card.skipped)}, {card.skipped_share:.2%} of what was read" if card.skipped else ""
    lengths = card.lengths
    name = f"{card.tokenizer}, " if card.tokenizer else ""
    facts = {
        "source": f"{card.source}, fingerprint {card.source_fingerprint}",
        "tokenizer": f"{name}fingerprint {card.tokenizer_fingerprint}",
        "limited": " ".join(card.notes) or "no: every document was read",
        "documents": f"{total.documents:,}",
        "empty": f"{card.empty:,}, left out" if card.empty else "0",
        "passed over": passed_over or "0",
        "tokens": f"{total.tokens:,}, and an end-of-text token per document",
        "text": f"{total.text_bytes:,} bytes of UTF-8",
        "bytes per token": f"{card.bytes_per_token:.3f}",
        "length": f"min {lengths.min:,}, median {lengths.median:,.1f}, mean {lengths.mean:,.1f}, "
        f"95% of documents below {lengths.p95:,.1f}, max {lengths.max:,} tokens",
        "copies": f"{card.copies:,} documents ({card.copies / total.documents:.2%}) repeat the text of an earlier one",
        "damaged": f"{card.damaged:,} documents ({card.damaged / total.documents:.2%}) contain U+FFFD, which stands "
        f"for bytes that were no UTF-8",
        "not UTF-8": f"{card.to_json()['not_utf8']['share']:.2%} of all, those passed over included",
        "vocabulary": f"{card.vocab_used:,} of {card.vocab_size:,} tokens occur "
        f"({card.vocab_used / card.vocab_size:.1%})",
    }
    table = Table(title="Data card", title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, fact in facts.items():
        table.add_row(label, escape(fact))
    return table


def _amounts(title: str, kind: str, card: Card, rows: dict[str, Amount]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(kind)
    for name in ("documents", "tokens", "share of tokens", "bytes", "share of text"):
        table.add_column(name, justify="right")
    for label, amount in rows.items():
        table.add_row(
            escape(label),
            f"{amount.documents:,}",
            f"{amount.tokens:,}",
            f"{amount.tokens / card.total.tokens:.1%}",
            f"{amount.text_bytes:,}",
            f"{amount.text_bytes / card.total.text_bytes:.1%}",
        )
    return table


def _lengths(lengths: Lengths) -> Table:
    """The histogram, an octave a row."""
    table = Table(title="Length of documents, in tokens", title_justify="left", title_style="bold")
    for name in ("tokens", "documents", "share", "share of tokens"):
        table.add_column(name, justify="right")
    table.add_column("documents", min_width=BAR)
    octaves = []
    for octave, bins in groupby(range(len(lengths.documents)), lambda i: int(lengths.edges[i]).bit_length()):
        numbers = list(bins)
        documents, tokens = (int(counts[numbers].sum()) for counts in (lengths.documents, lengths.tokens))
        octaves.append((2 ** (octave - 1), documents, tokens))
    most = max(documents for _, documents, _ in octaves)
    for first, documents, tokens in octaves:
        table.add_row(
            f"{first:,} - {2 * first - 1:,}",
            f"{documents:,}",
            f"{documents / lengths.documents.sum():.1%}",
            f"{tokens / lengths.tokens.sum():.1%}",
            "█" * round(BAR * documents / most) or "▏" * bool(documents),
        )
    return table


def _samples(card: Card) -> Table:
    title = f"{len(card.samples)} documents at random (seed={card.seed}), the first {EXCERPT} characters of each"
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("id", overflow="fold", max_width=30)
    table.add_column("tokens", justify="right")
    table.add_column("text", overflow="fold")
    for sample in card.samples:
        table.add_row(escape(sample.id), f"{sample.tokens:,}", escape(sample.text))
    return table
