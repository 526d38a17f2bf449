"""Which weights write a neuron of a TopK site and which read it: what makes it rise, and what it does.

Shapes: d neurons of a site, m entries of a neuron's share of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from .site import TopKSite

if TYPE_CHECKING:
    from .block import Block
    from .transformer import TopKTransformer


@dataclass(frozen=True)
class NeuronWeights:
    """A matrix of which every neuron of a site has a row, or a column.

    Attributes:
        parameter: the matrix. by_column: whether it is columns. first: which of them is neuron 0's. width: how many
            neurons there are.
    """

    parameter: Tensor
    by_column: bool
    first: int
    width: int

    def rows(self, of: Tensor) -> Tensor:
        """A neuron a row, (d, m): a view of ``of``, which is the parameter or has its shape."""
        return (of.T if self.by_column else of)[self.first : self.first + self.width]


def writers(model: TopKTransformer, site: TopKSite) -> list[NeuronWeights]:
    """What adds up to a neuron's value at ``site``.

    On the MLP's neurons: a row of gate and one of up. On the residual stream: a row of every projection that has added
    to it since the TopK site before, and, before the first site, a column of the embedding; not where that is the head
    as well (``model.tied``), as it then reads the neuron too.
    """
    blocks = _blocks(model)
    if site.name == "mlp_neurons":
        gate_up = blocks[site.layer].mlp.gate_up.weight
        return [NeuronWeights(gate_up, False, first, site.width) for first in (0, site.width)]
    found = [] if model.config.tied else [NeuronWeights(model.embed.weight, True, 0, site.width)]
    for block in blocks:
        for projection, place in ((block.attn.out, block.topk_attn), (block.mlp.down, block.topk_mlp)):
            found.append(NeuronWeights(projection.weight, False, 0, site.width))
            if place is site:
                return found
            if place is not None:
                found = []
    raise ValueError(f"{site.label} is not a site of this model.")


def readers(model: TopKTransformer, site: TopKSite) -> list[NeuronWeights]:
    """What reads a neuron at ``site`` before anything else has added to it: a column of the matrix that comes next,
    none where that is the head."""
    blocks = _blocks(model)
    if site.name == "mlp_neurons":
        matrix = blocks[site.layer].mlp.down.weight
    elif site.name == "resid_post_attn":
        matrix = blocks[site.layer].mlp.gate_up.weight
    elif site.layer + 1 < len(blocks):
        matrix = blocks[site.layer + 1].attn.qkv.weight
    else:
        return []
    return [NeuronWeights(matrix, True, 0, site.width)]


def _blocks(model: TopKTransformer) -> list[Block]:
    return cast("list[Block]", list(model.blocks))
