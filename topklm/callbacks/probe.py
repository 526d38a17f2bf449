"""Looks at what neurons stand for, on a fixed sample of validation text: overlap of active sets, token entropy,
effective rank, and information on the topic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ..interp import (
    SiteActivity,
    TokenSample,
    chance_overlap,
    draw_order,
    effective_rank,
    jaccard,
    observe,
    token_entropy,
    topic_information,
    validation_sample,
)
from .base import histogram, require, require_flag, require_whole, watched

RESIDUAL = ("resid_post_attn", "resid_post_mlp")  # sites in the basis that all blocks share
TOP = 10  # neurons
ENTROPY_EDGES = np.linspace(0.0, 16.0, 65)  # bits
INFORMATION_EDGES = np.linspace(-6.0, 0.0, 25)  # of log10(bits); less than a millionth counts as 1e-6


class Probe(L.Callback):
    """At each validation, at the k in force, and per site: ``sparsity/overlap_layers``, ``sparsity/overlap_tokens``,
    both with what chance gives, ``neurons/token_entropy_median``, ``neurons/effective_rank`` and, where documents have
    topics, ``neurons/topic_information_median`` and ``_top`` with what shuffled topics give. docs/metrics.md defines
    them.

    The first rank does it alone, so that the figures are the same on any number of devices. It draws on no random
    state and leaves the sites' counters alone: a run with it and one without are the same run. A dense twin has no
    sites, and logs nothing here.

    Args:
        enabled: look at all.
        tokens: size of the sample, in whole windows spread evenly over the whole validation split.
        firings: as many firings of every neuron go into its token entropy.
        topic: the field of a document's record that is its topic; None for no topics.
        shuffles: how often topics are shuffled. seed: of the shuffles and of the firings drawn.
    """

    def __init__(
        self,
        enabled: bool = True,
        tokens: int = 8192,
        firings: int = 200,
        topic: str | None = "topic",
        shuffles: int = 5,
        seed: int = 0,
    ) -> None:
        require_flag("probe.enabled", enabled)
        require_whole("probe.tokens", tokens)
        require_whole("probe.firings", firings, 2)
        require(firings <= tokens, "probe.firings", firings, f"at most as many as there are tokens ({tokens})")
        require(topic is None or isinstance(topic, str), "probe.topic", topic, "the name of a field, or null")
        require_whole("probe.shuffles", shuffles)
        require_whole("probe.seed", seed, 0)
        self.enabled, self.tokens, self.firings, self.topic = enabled, tokens, firings, topic
        self.shuffles, self.seed = shuffles, seed
        self._sample: TokenSample | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = watched(pl_module)
        if not self.enabled or trainer.global_rank != 0 or not module.model.sites:
            return
        if self._sample is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._sample = validation_sample(data.validation, self.tokens, self.topic)
        sample = self._sample
        with trainer.precision_plugin.val_step_context():
            seen = observe(module.model, sample, module.eot_id)
        order_n = draw_order(sample.ids_wt.numel(), self.seed)
        module.add_metrics(self._of_sample(sample, order_n))
        module.add_metrics(dict(_overlaps(list(seen.values()))))
        for label, activity in seen.items():
            rank = effective_rank(activity.moments.covariance())
            module.add_metrics({f"neurons/effective_rank/{label}": rank})
            bits_d = token_entropy(activity.fired_nd, sample.ids_wt.flatten(), self.firings, order_n)
            module.add_metrics(_entropy_metrics(bits_d, label))
            module.add_histogram(f"neurons/token_entropy/{label}", *histogram(bits_d, ENTROPY_EDGES))
            fired_gd = activity.fired_by_document(sample.document_wt, len(sample.topic_g))
            tokens_g = sample.document_wt.flatten().bincount(minlength=len(sample.topic_g))
            found = topic_information(fired_gd, tokens_g, sample.topic_g, self.shuffles, self.seed)
            if found is None:
                continue
            for name, value in (
                ("median", found.median),
                ("median_shuffled", found.median_shuffled),
                ("top", found.top(TOP)),
                ("top_shuffled", found.top_shuffled(TOP)),
            ):
                module.add_metrics({f"neurons/topic_information_{name}/{label}": value})
            logs_d = found.bits_d.clamp_min(1e-6).log10()
            module.add_histogram(f"neurons/topic_information_log10/{label}", *histogram(logs_d, INFORMATION_EDGES))
        module.log_row()

    def _of_sample(self, sample: TokenSample, order_n: Tensor) -> dict[str, float]:
        """The sample's size, and the token entropy of a neuron that fires everywhere."""
        tokens = sample.ids_wt.numel()
        always_n1 = torch.ones(tokens, 1, dtype=torch.bool)
        unigram = token_entropy(always_n1, sample.ids_wt.flatten(), self.firings, order_n).item()
        return {"neurons/probe_tokens": tokens, "neurons/unigram_entropy": unigram}


def _overlaps(activities: list[SiteActivity]) -> Iterator[tuple[str, float]]:
    """Overlap of neighbouring tokens at every site, and of neighbouring TopK layers at sites that share a basis, each
    after what chance gives."""
    sizes = {one.site.label: one.fired_wtd.sum(-1).double().mean().item() for one in activities}
    for one in activities:
        label, d = one.site.label, one.site.width
        yield f"sparsity/overlap_tokens_chance/{label}", chance_overlap(sizes[label], sizes[label], d)
        yield f"sparsity/overlap_tokens/{label}", jaccard(one.fired_wtd[:, :-1], one.fired_wtd[:, 1:])
    for name in RESIDUAL:
        for one, above in pairwise(one for one in activities if one.site.name == name):
            label, d = one.site.label, one.site.width
            yield f"sparsity/overlap_layers_chance/{label}", chance_overlap(sizes[label], sizes[above.site.label], d)
            yield f"sparsity/overlap_layers/{label}", jaccard(one.fired_wtd, above.fired_wtd)


def _entropy_metrics(bits_d: Tensor, label: str) -> dict[str, float]:
    """NaN is logged where no neuron fires often enough, so that no earlier value stands for it."""
    return {
        f"neurons/token_entropy_left_out/{label}": int(bits_d.isnan().sum()),
        f"neurons/token_entropy_median/{label}": bits_d.nanmedian().item(),
    }
