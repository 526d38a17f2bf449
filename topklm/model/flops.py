"""Counting parameters and floating-point operations, once, for every part of the product that speaks of cost.

A product of an (n, i) with an (i, o) matrix is 2 n i o FLOPs. Only products count: those with weight matrices, the head
included and the embedding look-up not, and the two of attention. Norms, rotary positions, softmax, TopK and the
optimizer are left out, as everywhere in the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import ModelConfig

if TYPE_CHECKING:
    from .transformer import TopKTransformer


@dataclass(frozen=True)
class Flops:
    """FLOPs per token of one forward pass over windows of ``seq_len`` tokens; properties make training of it.

    Attributes:
        blocks, head: products with the matrices of the blocks, and with the head.
        attention: queries with keys and weights with values, as if every token saw the whole window.
        attention_causal: the same without what comes after a token: (seq_len + 1) / (2 seq_len) of it.
        blocks_active, head_active: what is left of ``blocks`` and ``head`` if products that read a TopK state skipped
            its zeros: k of its d columns, with the final k. No product does so by itself.
    """

    blocks: float
    head: float
    attention: float
    attention_causal: float
    blocks_active: float
    head_active: float

    @property
    def forward(self) -> float:
        """One forward pass, dense-equivalent: neither causality nor zeros are discounted."""
        return self.blocks + self.head + self.attention

    @property
    def training(self) -> float:
        """Forward and backward, dense-equivalent: three forward passes, since backward makes two products of each one.
        It is ``6 N + 12 n_layers d_model seq_len``, N counting the entries of matrices (PaLM, arXiv 2204.02311,
        appendix B), and what MFU means throughout topklm."""
        return 3 * self.forward

    @property
    def training_causal(self) -> float:
        """``training`` with the half of attention that a causal kernel computes."""
        return 3 * (self.blocks + self.head + self.attention_causal)

    @property
    def active(self) -> float:
        """``training`` with products that read a TopK state reduced to its k entries. Backward shrinks alike where the
        gradient is masked: the weight's gradient needs the kept columns only, and so does the state's."""
        return 3 * (self.blocks_active + self.head_active + self.attention)

    def hardware(self, checkpointing: bool) -> float:
        """What is computed in training: with activation checkpointing the whole forward pass of every block is done
        twice, that of the head is not."""
        return self.training + (self.blocks + self.attention if checkpointing else 0.0)


def count_flops(config: ModelConfig) -> Flops:
    """FLOPs per token of the model that ``config`` describes. Tied or not, the head is a product."""
    c = config
    assert c.n_kv_heads is not None
    assert c.d_ff is not None
    topk, sparse_layers = c.topk, c.topk.topk_layers(c.n_layers)

    def share(layer: int, site: str) -> float:
        """The share of its input that a product reads which comes after this site; 1 where there is none."""
        if site not in topk.sites or layer not in sparse_layers:
            return 1.0
        width = c.site_width(site)
        return min(1.0, topk.final_k(sparse_layers.index(layer), width) / width)

    qkv = 2.0 * c.d_model * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    out = 2.0 * c.d_model * c.n_heads * c.head_dim
    gate_up, down = 4.0 * c.d_model * c.d_ff, 2.0 * c.d_model * c.d_ff
    head = 2.0 * c.d_model * c.vocab_size
    attention = 4.0 * c.n_layers * c.n_heads * c.head_dim * c.seq_len
    active = sum(
        qkv * share(layer - 1, "resid_post_mlp")  # the first block reads the embedding, and -1 is no layer with TopK
        + out
        + gate_up * share(layer, "resid_post_attn")
        + down * share(layer, "mlp_neurons")
        for layer in range(c.n_layers)
    )
    return Flops(
        blocks=c.n_layers * (qkv + out + gate_up + down),
        head=head,
        attention=attention,
        attention_causal=attention * (c.seq_len + 1) / (2 * c.seq_len),
        blocks_active=active,
        head_active=head * share(c.n_layers - 1, "resid_post_mlp"),
    )


def count_parameters(model: TopKTransformer) -> int:
    """All trainable parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def parameters_by_part(model: TopKTransformer) -> dict[str, int]:
    """``count_parameters`` by ``embedding``, ``blocks`` and ``head`` (with the last norm); a tied matrix belongs to the
    embedding."""
    counts = {"embedding": 0, "blocks": 0, "head": 0}
    for name, parameter in model.named_parameters():
        part = {"embed": "embedding", "blocks": "blocks"}.get(name.split(".", 1)[0], "head")
        counts[part] += parameter.numel()
    return counts
