"""What a person sees at the end of a run: a table of the layers, the validation loss beside xz, samples, and where
everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True}  # lines of text as they are, whatever the width


def layer_table(layers: Sequence[dict[str, Any]]) -> Table:
    """The layers of a summary as a table; a dash where there is nothing to measure."""
    windows = {row["dead_window_tokens"] for row in layers} - {None}
    window = f" over the last {windows.pop():,.0f} tokens" if windows else ""
    table = Table(
        title=f"Sparsity by layer (dead: fired on no token{window})", title_justify="left", title_style="bold"
    )
    for name in ("layer", "site", "k", "l0", "dead", "energy kept"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for row in layers:
        cells = [
            "dense" if row["k"] is None else str(row["k"]),
            _format(row["l0"], "{:.1f}"),
            _format(row["dead_fraction"], "{:.1%}"),
            _format(row["energy_kept"], "{:.1%}"),
        ]
        table.add_row(str(row["layer"]), row["site"], *cells)
    return table


def _format(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def print_report(
    console: Console,
    summary: dict[str, Any],
    xz: dict[str, float] | None,
    samples: Sequence[tuple[str, str]],
    run: Path,
    seconds: float,
) -> None:
    """Prints the end of a run. ``xz``: bits per byte of the compressor on the whole validation text, of which the
    loss may be measured on a part; ``samples``: prompts and continuations."""
    console.print()
    console.print(layer_table(summary["layers"]))
    if summary["val_loss"] is not None:
        console.print(
            f"validation loss  [bold]{summary['val_loss']:.4f}[/] nats per token = [bold]{summary['val_bpb']:.4f}[/] "
            f"bits per byte, over {summary['val_tokens']:,.0f} tokens",
            **PLAIN,
        )
        if summary["val_loss_final_k"] not in (None, summary["val_loss"]):
            console.print(
                f"                 {summary['val_loss_final_k']:.4f} nats per token with the final k, which it ended "
                f"before reaching",
                **PLAIN,
            )
    if summary.get("val_loss_at_start") is not None:
        console.print(
            f"before training  {summary['val_loss_at_start']:.4f} nats per token with the k it began with, "
            f"{summary['val_loss_final_k_at_start']:.4f} with the final k",
            **PLAIN,
        )
    if xz is not None:
        console.print(
            f"xz -9e reaches   {xz['plain']:.4f} bits per byte on the whole validation text, {xz['primed']:.4f} with "
            f"the training text as its dictionary",
            **PLAIN,
        )
    speed = f", {summary['tokens_per_second']:,.0f} tokens/s" if summary["tokens_per_second"] else ""
    console.print(
        f"trained on       {summary['tokens']:,} tokens in {summary['steps']:,} steps, {summary['params']:,} "
        f"parameters{speed}, {seconds:.0f} s in all",
        **PLAIN,
    )
    for prompt, continuation in samples:
        console.print(f"[bold]{escape(prompt)}[/]{escape(' '.join(continuation.splitlines()))}", **PLAIN)
    console.print(f"run directory    [bold]{escape(str(run))}[/]", **PLAIN)
