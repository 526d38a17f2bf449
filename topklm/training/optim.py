"""Optimizers: AdamW, and Muon for hidden matrices with AdamW for the rest, behind one optimizer object; over master
weights where the model's are bfloat16.

One object, because Lightning counts a step per optimizer and every schedule here is a function of that count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer

from ..model import TopKTransformer
from ..model.init import Rule, rules
from .muon import BatchedMuon
from .precision import MasterWeights
from .sections import OptimizerConfig


class MuonAdamW(Optimizer):
    """Muon on some parameter groups and AdamW on others, with the state dict of both.

    The groups of the inner optimizers are the groups of this one (the same dicts), so a learning rate set here is set
    there. Sources: Muon, Jordan et al. 2024; ``torch.optim.Muon`` with updates matched to AdamW's size (Moonlight,
    arXiv 2502.16982).

    Args:
        muon, adamw: the two. parts: what Muon holds in the place of a parameter in which several matrices are stacked
            (queries, keys and values; gate and up), as it orthogonalises each by itself: (part, whole, rows).
    """

    def __init__(self, muon: Muon, adamw: AdamW, parts: Sequence[tuple[Parameter, Parameter, slice]] = ()) -> None:
        self.inner: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}
        self.parts = parts
        super().__init__(muon.param_groups + adamw.param_groups, {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for optimizer in self.inner.values() for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both. ``closure`` runs once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, whole, rows in self.parts:  # a view of the whole, so that an update of the one is one of the other
            part.data = whole.data[rows]
            part.grad = None if whole.grad is None else whole.grad[rows]
        for optimizer in self.inner.values():
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for part, whole, _ in self.parts:
            part.grad = whole.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.inner.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, optimizer in self.inner.items():
            optimizer.load_state_dict(state_dict[name])
        self._share_groups()


@torch.no_grad()
def forget(optimizer: Optimizer, parameter: Tensor, where: Tensor) -> None:
    """Zeroes what ``optimizer`` keeps per entry of ``parameter`` (moments, momentum), where the bool tensor ``where``
    is True. Master weights become what the parameter is there."""
    if isinstance(optimizer, MasterWeights):
        forget(optimizer.inner, optimizer.take_up(parameter, where), where)
        return
    inner = list(optimizer.inner.values()) if isinstance(optimizer, MuonAdamW) else [optimizer]
    parts = optimizer.parts if isinstance(optimizer, MuonAdamW) else ()
    held = [(parameter, where), *((part, where[rows]) for part, whole, rows in parts if whole is parameter)]
    for one in inner:
        for key, entries in held:
            for kept in one.state.get(key, {}).values():
                if isinstance(kept, Tensor) and kept.shape == entries.shape:
                    kept.masked_fill_(entries, 0)


def build_optimizer(model: TopKTransformer, config: OptimizerConfig) -> Optimizer:
    """Groups the parameters by the rules of ``model/init.py`` and gives each group its peak learning rate as
    ``peak_lr``. Parameters in bfloat16 get float32 master weights."""
    parameters = dict(model.named_parameters())
    if not any(parameter.dtype == torch.bfloat16 for parameter in parameters.values()):
        optimizer = _build(parameters, rules(model), config)
        # A fused step, and Muon's on parts, leave no trace by which a holder of copies would know that they are old.
        optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(list(parameters.values())))
        return optimizer
    masters = {name: Parameter(parameter.detach().float()) for name, parameter in parameters.items()}
    return MasterWeights(_build(masters, rules(model), config), parameters, masters)


def _build(parameters: dict[str, Parameter], by_name: dict[str, Rule], config: OptimizerConfig) -> Optimizer:
    groups: dict[tuple[str, float, bool], list[Parameter]] = {}
    parts: list[tuple[Parameter, Parameter, slice]] = []
    for name, rule in by_name.items():
        by_muon = config.name == "muon" and bool(rule.parts)
        # Muon's matched update has a spectral norm that grows with sqrt(width) at a fixed rate, AdamW's with the width:
        # so muP asks the square root of AdamW's factor.
        lr_scale = rule.lr_scale**0.5 if by_muon else rule.lr_scale
        members = groups.setdefault(("muon" if by_muon else "adamw", lr_scale, rule.decay), [])
        if by_muon and len(rule.parts) > 1:
            for stop, rows in zip(itertools.accumulate(rule.parts), rule.parts, strict=True):
                where = slice(stop - rows, stop)
                parts.append((Parameter(parameters[name].data[where]), parameters[name], where))
                members.append(parts[-1][0])
        else:
            members.append(parameters[name])

    def of(kind: str) -> list[dict[str, Any]]:
        return [
            {
                "params": members,
                "lr": config.lr * scale,
                "peak_lr": config.lr * scale,
                "weight_decay": config.weight_decay if decay else 0.0,
            }
            for (group_kind, scale, decay), members in groups.items()
            if group_kind == kind
        ]

    adamw = AdamW(
        of("adamw"),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=next(iter(parameters.values())).device.type != "mps",
    )
    if config.name == "adamw":
        return adamw
    muon = BatchedMuon(
        of("muon"), lr=config.lr, momentum=config.momentum, ns_steps=config.ns_steps, adjust_lr_fn="match_rms_adamw"
    )
    return MuonAdamW(muon, adamw, parts)
