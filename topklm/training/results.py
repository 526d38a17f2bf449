"""What runs are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def results(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What runs are compared by, of a ``summary.json``; None where not measured. ``val_loss``, ``val_bpb``: with the
    final k, also of a run that ended while k was falling; the rest is as it was at the end. ``dead_worst``: the largest
    dead fraction of a site, over the last ``dead_window_tokens``. ``energy_kept_last``: in the last layer with TopK."""
    sites = [row for row in summary.get("layers", []) if row.get("topk")]
    dead = [row["dead_fraction"] for row in sites if row.get("dead_fraction") is not None]
    in_force, final, bpb = (summary.get(name) for name in ("val_loss", "val_loss_final_k", "val_bpb"))
    return {
        "val_loss": final,
        "val_bpb": bpb * final / in_force if bpb and final and in_force else None,  # of the same tokens and bytes
        **{name: summary.get(name) for name in ("tokens_per_second", "params", "tokens")},
        "dead_worst": max(dead) if dead else None,
        "dead_window_tokens": sites[0].get("dead_window_tokens") if dead else None,
        "energy_kept_last": sites[-1].get("energy_kept") if sites else None,
    }
