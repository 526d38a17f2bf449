"""A TopK site: one place in one block where TopK acts, with the k in force and counters of what fires.

The counters are the model's public telemetry. They grow during training forward passes only, on the device, without a
host sync, and work under torch.compile and gradient accumulation. What helps training along (an estimated threshold,
gradients of what was not kept, a bias on the choice) acts in training forward passes only as well: evaluation and
generation keep exactly the k largest. d is the site's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .activation import topk_with_stats
from .config import TopKConfig


@dataclass(frozen=True)
class Interval:
    """What a site saw since the last ``reset_interval``, on the host.

    Attributes:
        tokens: training tokens seen by this process.
        l0: mean number of firing (non-zero) neurons per token.
        energy_kept: mean over tokens of ``|topk(x)|^2 / |x|^2``.
        threshold: mean over tokens of the smallest kept score: value (or magnitude), and in training its bias.
        firing_rate_d: share of tokens on which each neuron fired, (d,) float32 on the CPU.
    """

    tokens: int
    l0: float
    energy_kept: float
    threshold: float
    firing_rate_d: Tensor


class TopKSite(nn.Module):
    """TopK over the last dimension, at a named place of a block.

    Attributes:
        layer, name, width: which block, which site, how many neurons.
        k_final: k at the end of training; ``callbacks.adaptive_k`` may move it.
        k: 0-d int64 buffer, the k in force; part of the state dict, so a loaded checkpoint keeps the k it was trained
            with.
        k_on_host: the same number in Python, so that asking for it makes nobody wait for the device.
        record: count what fires in training forward passes.
        biased: whether training forward passes choose by ``x + bias_d`` (or ``|x| + bias_d``); bias_d: (d,) float32,
            no weight: what sets it keeps it.
        exact: 0-d bool that stays on the CPU, whether ``impl=statistical`` keeps exactly k by now.
        ste_scale: 0-d float32, the factor in force on the gradient of what was not kept.
    """

    k: Tensor
    bias_d: Tensor
    ste_scale: Tensor
    fired_d: Tensor
    tokens_since_fired_d: Tensor
    sums: Tensor
    tokens: Tensor

    def __init__(self, layer: int, name: str, width: int, k_final: int, config: TopKConfig) -> None:
        super().__init__()
        self.layer, self.name, self.width, self.k_final = layer, name, width, k_final
        self.config = config
        self.k_on_host = k_final
        self.record = True
        self.biased = False
        self.exact = torch.tensor(False, device="cpu")  # no buffer: on a device it could not be read without waiting
        self.register_buffer("k", torch.tensor(k_final))
        for counter, value in (
            ("bias_d", torch.zeros(width)),
            ("ste_scale", torch.tensor(float(config.ste_scale))),
            ("fired_d", torch.zeros(width, dtype=torch.int64)),
            ("tokens_since_fired_d", torch.zeros(width, dtype=torch.int64)),
            ("sums", torch.zeros(3)),
            ("tokens", torch.zeros((), dtype=torch.int64)),
        ):
            self.register_buffer(counter, value, persistent=False)

    @property
    def label(self) -> str:
        """Name in metrics: ``layer_03`` at the residual stream after the MLP, ``layer_03_mlp_neurons`` and so on
        elsewhere."""
        return f"layer_{self.layer:02d}" + ("" if self.name == "resid_post_mlp" else f"_{self.name}")

    def set_k(self, k: int) -> None:
        """Puts ``k`` in force; at or above the width TopK is the identity. Raises ValueError below 1."""
        if k < 1:
            raise ValueError(f"k={k}: TopK keeps at least 1 entry.")
        self.k.fill_(k)
        self.k_on_host = k

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.k_on_host = int(self.k)

    @property
    def most_kept(self) -> int | None:
        """The most non-zeros that a token has after a training forward pass; None where they are estimated."""
        return None if self.config.impl == "statistical" and not self.exact else self.k_on_host

    def set_progress(self, progress: float) -> None:
        """Puts in force what depends on the progress of training (0 to 1) besides k: see ``TopKConfig``."""
        if self.config.impl == "statistical":
            self.exact.fill_(progress >= self.config.exact_from)
        if self.config.grad == "ste":
            self.ste_scale.fill_(self.config.ste_scale if progress <= self.config.ste_until else 0.0)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(..., d) to (..., d) with at most k non-zeros per token, or about k where they are estimated.

        Args:
            added: what joins ``x`` first, the residual add; one with TopK, it costs no pass of its own over memory.
        """
        record = self.record and self.training
        config = self.config
        estimates = config.impl == "statistical"
        straight_through = config.grad == "ste" and self.training
        y, fired_d, sums = topk_with_stats(
            x,
            self.k,
            select=config.select,
            relu=config.relu,
            grad="ste" if straight_through else "masked",
            impl="auto" if estimates and not self.training else config.impl,
            stats=record,
            bias=self.bias_d if self.biased and self.training else None,
            exact=self.exact if estimates and self.training else None,
            ste_scale=self.ste_scale if straight_through else None,
            ste_reach=config.ste_reach if straight_through else None,
            added=added,
        )
        if record:
            self._count(fired_d, sums, x.numel() // self.width)
        return y

    @torch.no_grad()
    def _count(self, fired_d: Tensor, sums: Tensor, tokens: int) -> None:
        self.fired_d.add_(fired_d)
        self.tokens_since_fired_d.add_(tokens)
        self.tokens_since_fired_d.masked_fill_(fired_d > 0, 0)
        self.sums.add_(sums)
        self.tokens.add_(tokens)

    def interval_counters(self) -> dict[str, Tensor]:
        """The counters since the last ``reset_interval``: all are sums, so those of several ranks add up."""
        return {"fired_d": self.fired_d, "sums": self.sums, "tokens": self.tokens}

    def load_interval(self, counters: dict[str, Tensor]) -> None:
        """Takes up an interval where a checkpoint left it."""
        for name, counter in self.interval_counters().items():
            counter.copy_(counters[name])

    def reset_interval(self) -> None:
        """Starts a new interval. ``tokens_since_fired_d`` goes on."""
        for counter in self.interval_counters().values():
            counter.zero_()

    def mean_threshold(self, reduce: Callable[[Tensor], Tensor] = lambda counter: counter) -> Tensor:
        """``Interval.threshold`` as a 0-d tensor on the device, NaN if nothing was counted."""
        return reduce(self.sums)[1] / reduce(self.tokens)

    def interval(self, reduce: Callable[[Tensor], Tensor] = lambda counter: counter) -> Interval | None:
        """Means since the last ``reset_interval``, or None if nothing was counted. Reads the device: call it when
        logging only.

        Args:
            reduce: sums a counter over ranks.
        """
        counters = {name: reduce(counter) for name, counter in self.interval_counters().items()}
        tokens = int(counters["tokens"])
        if tokens == 0:
            return None
        energy, threshold, nonzeros = (counters["sums"] / tokens).tolist()
        return Interval(tokens, nonzeros, energy, threshold, counters["fired_d"].float().cpu() / tokens)
