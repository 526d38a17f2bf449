"""How every parameter starts, learns and decays: the one place that says so.

| parameter                  | starts as                               | learning rate | decays |
|----------------------------|-----------------------------------------|---------------|--------|
| embedding                  | normal, std 1; as the head where tied   | 1             | no     |
| matrices into a branch     | normal, std 1/sqrt(fan-in)              | width ratio   | yes    |
| matrices out of a branch   | the same, over sqrt(2 * n_layers)       | width ratio   | yes    |
| head                       | normal, std 1/sqrt(base width)          | 1             | yes    |
| gains of norms             | 1                                       | 1             | no     |

The branches' way out is damped so that the residual stream's variance does not grow with depth (GPT-2). Under
muP-style transfer (Yang et al. 2022, arXiv 2203.03466, Adam column) the base width is ``mup_base_width`` and the width
ratio ``mup_base_width / d_model``; without it they are ``d_model`` and 1. Under muP the logits are multiplied by the
ratio too, which stands for the head's smaller start and rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .config import ModelConfig

if TYPE_CHECKING:
    from .transformer import TopKTransformer


@dataclass(frozen=True)
class Rule:
    """One row of the table above.

    Attributes:
        std: standard deviation at the start; None for a constant 1.
        lr_scale: factor on the learning rate.
        decay: whether weight decay applies.
        parts: rows of each of the hidden matrices stacked in it, which Muon may update; empty for anything else.
    """

    std: float | None
    lr_scale: float
    decay: bool
    parts: tuple[int, ...] = ()


def rules(model: TopKTransformer) -> dict[str, Rule]:
    """The rule of every parameter, by its name in ``model.named_parameters()``."""
    config = model.config
    found = {}
    head_std = (config.mup_base_width or config.d_model) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            found[name] = Rule(None, 1.0, decay=False)
        elif name == "embed.weight":
            found[name] = Rule(head_std if config.tied else 1.0, 1.0, decay=False)
        elif name == "head.weight":
            found[name] = Rule(head_std, 1.0, decay=True)
        else:
            std = parameter.shape[1] ** -0.5
            if name.endswith((".out.weight", ".down.weight")):
                std /= (2 * config.n_layers) ** 0.5
            found[name] = Rule(std, config.width_ratio, decay=True, parts=_parts(name, parameter.shape[0], config))
    return found


def _parts(name: str, rows: int, config: ModelConfig) -> tuple[int, ...]:
    assert config.n_kv_heads is not None
    if name.endswith(".qkv.weight"):
        return (config.n_heads * config.head_dim, *2 * [config.n_kv_heads * config.head_dim])
    return (rows // 2, rows // 2) if name.endswith(".gate_up.weight") else (rows,)


@torch.no_grad()
def initialise(model: TopKTransformer) -> None:
    """Fills the parameters by the table, from torch's global random state."""
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    for name, rule in rules(model).items():
        if rule.std is None:
            parameters[name].fill_(1.0)
        else:
            parameters[name].normal_(0.0, rule.std)
