"""What a TopK transformer is made of: two frozen dataclasses that check themselves.

Every error names the Hydra override to change. Nothing here imports torch, so a config can be checked before anything
heavy loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SITES = ("resid_post_attn", "mlp_neurons", "resid_post_mlp")
SELECT = ("value", "magnitude")
GRAD = ("masked", "ste")
IMPL = ("auto", "reference", "threshold", "triton", "statistical")
CHECKPOINTING = ("none", "selective", "block", "block_sparse")  # no part of the config: a run may change it


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


@dataclass(frozen=True)
class TopKConfig:
    """Where TopK acts, how many entries it keeps, and how its gradient flows.

    Attributes:
        k: entries kept per token at the end of training: one number, or one per TopK block. Wins over ``k_ratio`` when
            set.
        k_ratio: the same as a share of the site's width: one number, or one per TopK block.
        sites: places inside a block, any of ``resid_post_attn`` (after the attention's residual add), ``mlp_neurons``
            (inside the MLP) and ``resid_post_mlp`` (after the MLP's residual add: the paper's place). Empty: no TopK,
            the dense twin.
        layers: the blocks that get TopK, in rising order; None means all but the last ``n_nontopk``.
        n_nontopk: number of final blocks left dense (the paper's name, arXiv 2506.21468).
        select: keep the largest ``value``s or the largest ``magnitude``s.
        relu: clip what was kept at zero, so that a neuron is either off or positive.
        grad: ``masked`` (only kept entries get a gradient) or ``ste`` (straight-through: every entry does).
        ste_scale: under ``ste``, the factor on the gradient of entries that were not kept. ste_until: share of training
            after which they get none. ste_reach: only the ``ste_reach * k`` largest entries get one; None means all.
        impl: ``reference`` (a stable sort), ``threshold`` (a compiled search, CPU only), ``triton`` (the search as a
            kernel, GPU only), ``auto``: the fastest of these that runs here, or ``statistical``: about k entries in
            training, by an estimated threshold.
        exact_from: progress of training (0 to 1) from which ``statistical`` keeps exactly k all the same.
    """

    k: int | list[int] | None = None
    k_ratio: float | list[float] | None = 0.125
    sites: tuple[str, ...] = ("resid_post_mlp",)
    layers: tuple[int, ...] | None = None
    n_nontopk: int = 1
    select: str = "value"
    relu: bool = False
    grad: str = "masked"
    ste_scale: float = 0.1
    ste_until: float = 1.0
    ste_reach: float | None = 2.0
    impl: str = "auto"
    exact_from: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "sites", tuple(s for s in SITES if s in self.sites) + tuple(s for s in self.sites if s not in SITES)
        )
        for site in self.sites:
            _require(site in SITES, f"topk.sites has {site!r}: choose from {', '.join(SITES)}.")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            _require(len(self.layers) > 0, "topk.layers=[] names no block: use topk=none for the dense twin.")
            # A list of k or of schedules goes by this order, so another one would be ambiguous.
            _require(
                list(self.layers) == sorted(set(self.layers)),
                f"topk.layers={list(self.layers)}: name each block once, in rising order.",
            )
        _require(self.select in SELECT, f"topk.select={self.select}: choose from {', '.join(SELECT)}.")
        _require(self.grad in GRAD, f"topk.grad={self.grad}: choose from {', '.join(GRAD)}.")
        _require(self.impl in IMPL, f"topk.impl={self.impl}: choose from {', '.join(IMPL)}.")
        for name in ("exact_from", "ste_until"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"topk.{name}={value}: give a share of training from 0 to 1.")
        _require(0 <= self.ste_scale < math.inf, f"topk.ste_scale={self.ste_scale}: give a number of 0 or more.")
        _require(
            self.ste_reach is None or 1 <= self.ste_reach < math.inf,
            f"topk.ste_reach={self.ste_reach}: it is a multiple of k, so give 1 or more, or null for all entries.",
        )
        _require(self.n_nontopk >= 0, f"topk.n_nontopk={self.n_nontopk}: it counts blocks, so give 0 or more.")
        if self.sites:
            _require(
                self.k is not None or self.k_ratio is not None,
                "topk.k and topk.k_ratio are both null: set one of them.",
            )
        for k in self.k if isinstance(self.k, (list, tuple)) else [self.k]:
            _require(
                k is None or _is_int(k), f"topk.k={self.k}: give an integer, or a list with one integer per TopK block."
            )
            _require(k is None or k >= 1, f"topk.k={self.k}: TopK keeps at least 1 entry, so set topk.k to 1 or more.")
        for r in self.k_ratio if isinstance(self.k_ratio, (list, tuple)) else [self.k_ratio]:
            _require(
                r is None or (isinstance(r, (int, float)) and 0 < r <= 1),
                f"topk.k_ratio={self.k_ratio}: give a share of the width above 0 and at most 1, or a list of such "
                f"shares.",
            )

    def topk_layers(self, n_layers: int) -> tuple[int, ...]:
        """Indices of the blocks that hold TopK sites, in order, for a model of ``n_layers`` blocks."""
        if not self.sites:
            return ()
        if self.layers is not None:
            return self.layers
        return tuple(range(n_layers - self.n_nontopk))

    def final_k(self, position: int, width: int) -> int:
        """k at the end of training, of a site ``width`` wide in the ``position``-th TopK block."""
        if self.k is not None:
            return self.k[position] if isinstance(self.k, (list, tuple)) else self.k
        ratio = self.k_ratio[position] if isinstance(self.k_ratio, (list, tuple)) else self.k_ratio
        assert ratio is not None
        return max(1, round(ratio * width))


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: pre-norm RMSNorm, rotary positions, SwiGLU, grouped-query attention.

    Attributes:
        vocab_size: rows of the embedding; set from the tokenizer.
        d_model: width of the residual stream.
        n_layers, n_heads: blocks, and attention heads per block.
        n_kv_heads: key/value heads; None means ``n_heads`` (no grouping).
        d_ff: width of the MLP; None means 8/3 of ``d_model``, rounded up to a multiple of 64.
        seq_len: tokens per training window.
        rope_theta: base of the rotary frequencies.
        qk_norm: RMS-normalise queries and keys per head.
        tied: one matrix serves as embedding and head.
        norm_eps: added to the mean square in every RMSNorm.
        mup_base_width: muP-style transfer over width: the ``d_model`` at which the learning rate was tuned. None turns
            it off. mup_base_head_dim: the width of a head there.
        topk: where and how much is kept.
    """

    vocab_size: int
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_ff: int | None = None
    seq_len: int = 256
    rope_theta: float = 10000.0
    qk_norm: bool = True
    tied: bool = False
    norm_eps: float = 1e-6
    mup_base_width: int | None = None
    mup_base_head_dim: int = 64
    topk: TopKConfig = field(default_factory=TopKConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "seq_len"):
            value = getattr(self, name)
            _require(value >= 1, f"model.{name}={value}: give 1 or more.")
        d_ff = 64 * -(-8 * self.d_model // (3 * 64)) if self.d_ff is None else self.d_ff
        n_kv_heads = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        object.__setattr__(self, "d_ff", d_ff)
        object.__setattr__(self, "n_kv_heads", n_kv_heads)
        _require(d_ff >= 1, f"model.d_ff={self.d_ff}: give 1 or more, or null for 8/3 of d_model.")
        _require(
            self.d_model % self.n_heads == 0,
            f"model.d_model={self.d_model} is not divisible by model.n_heads={self.n_heads}: change one of them.",
        )
        _require(
            self.head_dim % 2 == 0,
            f"model.d_model={self.d_model} over model.n_heads={self.n_heads} gives heads of odd width {self.head_dim}: "
            "rotary positions need an even width, change one of them.",
        )
        _require(
            n_kv_heads >= 1 and self.n_heads % n_kv_heads == 0,
            f"model.n_heads={self.n_heads} is not divisible by model.n_kv_heads={self.n_kv_heads}: change one of them.",
        )
        _require(
            self.mup_base_width is None or self.mup_base_width >= 1,
            f"model.mup_base_width={self.mup_base_width}: give the d_model at which the learning rate was tuned, or "
            f"null.",
        )
        _require(self.mup_base_head_dim >= 1, f"model.mup_base_head_dim={self.mup_base_head_dim}: give 1 or more.")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"model.{name}={value}: give a finite number above 0.")
        self._check_topk()

    def _check_topk(self) -> None:
        layers = self.topk.topk_layers(self.n_layers)
        if not self.topk.sites:
            return
        _require(
            len(layers) > 0,
            f"topk.n_nontopk={self.topk.n_nontopk} leaves none of the {self.n_layers} blocks with TopK: lower it, or "
            f"use topk=none.",
        )
        for layer in layers:
            _require(
                0 <= layer < self.n_layers,
                f"topk.layers names block {layer}, but model.n_layers={self.n_layers}: blocks are numbered 0 to "
                f"{self.n_layers - 1}.",
            )
        for name in ("k", "k_ratio"):
            per_block = getattr(self.topk, name)
            if isinstance(per_block, (list, tuple)):
                _require(
                    len(per_block) == len(layers),
                    f"topk.{name} lists {len(per_block)} values for {len(layers)} TopK blocks: give one per TopK "
                    f"block, or one number.",
                )
        for position in range(len(layers)):
            for site in self.topk.sites:
                width = self.site_width(site)
                k = self.topk.final_k(position, width)
                _require(
                    k <= width,
                    f"topk.k={k} is larger than the {width} neurons of {site}: set topk.k to {width} or less, or widen "
                    f"the model.",
                )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def width_ratio(self) -> float:
        """``mup_base_width / d_model``, the factor of muP-style transfer; 1 when it is off."""
        return self.mup_base_width / self.d_model if self.mup_base_width else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor on the products of queries and keys, for heads of width e: 1/sqrt(e). muP asks for 1/e, as queries and
        keys come to agree in training (Yang et al. 2022, arXiv 2203.03466); both are equal at the base width of a
        head."""
        return (self.mup_base_head_dim if self.mup_base_width else self.head_dim) ** 0.5 / self.head_dim

    def site_width(self, site: str) -> int:
        """Number of neurons of a TopK site of this name."""
        assert self.d_ff is not None
        return self.d_ff if site == "mlp_neurons" else self.d_model
