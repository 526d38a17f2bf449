"""``summary.json``: the state of a run and its results, for people and for the tools that come after training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from ..callbacks import Energy, Throughput
from ..model import TopKTransformer, count_parameters
from ..model.implementations import resolve_impl
from .module import TopKLM
from .provenance import provenance
from .rundir import RunDirectory


def finite(content: Any) -> Any:
    """The same with None in the place of NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


# What a layer's entry says after its k, and the metric of which that is the last value.
LAYER_METRICS = {
    "l0": "sparsity/l0",
    "dead_fraction": "sparsity/dead_fraction",
    "dead_fraction_10M": "sparsity/dead_fraction_10M",
    "energy_kept": "sparsity/energy_kept",
    "overlap_layers": "sparsity/overlap_layers",
    "overlap_layers_chance": "sparsity/overlap_layers_chance",
    "overlap_tokens": "sparsity/overlap_tokens",
    "overlap_tokens_chance": "sparsity/overlap_tokens_chance",
    "token_entropy": "neurons/token_entropy_median",
    "effective_rank": "neurons/effective_rank",
    "topic_information": "neurons/topic_information_median",
    "topic_information_shuffled": "neurons/topic_information_median_shuffled",
    "topic_information_top": "neurons/topic_information_top",
    "topic_information_top_shuffled": "neurons/topic_information_top_shuffled",
}


def layer_rows(model: TopKTransformer, latest: dict[str, float]) -> list[dict[str, Any]]:
    """A row per TopK site, and one per block without any: k, dead neurons' window, LAYER_METRICS, and the norm of the
    block's gradient. None where not measured."""
    rows = []
    for layer in range(model.config.n_layers):
        gradient = {"grad_norm": latest.get(f"train/grad_norm/layer_{layer:02d}")}
        sites = [site for site in model.sites if site.layer == layer]
        for site in sites:
            rows.append(
                {
                    "layer": layer,
                    "site": site.name,
                    "topk": True,
                    "k": int(site.k),
                    "dead_window_tokens": latest.get("sparsity/dead_window_tokens"),
                    **{name: latest.get(f"{metric}/{site.label}") for name, metric in LAYER_METRICS.items()},
                    **gradient,
                }
            )
        if not sites:
            empty = dict.fromkeys(("k", "dead_window_tokens", *LAYER_METRICS))
            rows.append({"layer": layer, "site": "resid_post_mlp", "topk": False, **empty, **gradient})
    return rows


class Summary(L.Callback):
    """Keeps ``summary.json`` up to date: when the run begins, after each validation, and when it ends.

    Args:
        run: the run directory. facts: entries known beforehand, such as the seed and the W&B id.

    Attributes:
        content: what the file says.
    """

    def __init__(self, run: RunDirectory, facts: dict[str, Any]) -> None:
        self.run = run
        self.content: dict[str, Any] = {
            "status": "running",
            "reason": None,
            **facts,
            **provenance(Path(__file__).parent),
        }

    def carry(self, before: dict[str, Any]) -> None:
        """Takes up the results that a run had, which continues now."""
        self.content = {**before, **self.content}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TopKLM)
        self.update(trainer, pl_module)
        self.write()

    def update(self, trainer: L.Trainer, module: TopKLM) -> None:
        """Takes up the latest results of ``module``."""
        latest = module.latest
        speed = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
        energy = next((c for c in trainer.callbacks if isinstance(c, Energy)), None)  # type: ignore[attr-defined]
        results = {
            "params": count_parameters(module.model),
            "steps": module.global_step,
            "tokens": module.global_step * module.tokens_per_step,
            "train_loss": latest.get("train/loss"),
            "val_loss": latest.get("val/loss"),
            "val_loss_final_k": latest.get("val/loss_final_k"),
            "val_bpb": latest.get("val/bpb"),
            "val_tokens": latest.get("val/tokens"),
            "tokens_per_second": speed.tokens_per_second if speed else None,
            "mfu": speed.mfu if speed else None,
            "energy_kwh": energy.kwh if energy else None,
            "k_final": module.final_k,
            "topk_impl": resolve_impl(
                module.model.config.topk.impl, module.device, next(module.model.parameters()).dtype
            ),
            "layers": layer_rows(module.model, latest),
        }
        self.content.update(finite(results))

    def end(self, status: str, reason: str | None = None) -> None:
        """Writes the last state: ``finished``, ``failed`` or ``interrupted``, with the reason."""
        self.content.update(status=status, reason=reason)
        self.write()

    @rank_zero_only
    def write(self) -> None:
        self.run.write_summary(self.content)
