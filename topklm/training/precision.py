"""Training with bfloat16 weights: ``trainer.precision=bf16-true``.

Forward and backward passes see bfloat16 parameters, which need no casts and half the memory traffic of float32 ones.
The optimizer works on float32 copies, the master weights (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1): an
update much smaller than a 256th of a weight would be lost in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from ..errors import UserError


def parameters_to_bfloat16(module: nn.Module) -> None:
    """Rounds the parameters in place. Buffers stay what they are: angles of positions, sums of the telemetry and biases
    of the selection need float32, which ``module.to`` would take from them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


class BFloat16Weights(Precision):
    """Lightning's precision plugin for it. Its own ``bf16-true`` converts buffers too, makes bfloat16 the default type
    of new tensors during a step, and has no master weights."""

    precision: Any = "bf16-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        parameters_to_bfloat16(module)
        return module


class MasterWeights(Optimizer):
    """An optimizer on float32 copies of parameters, which are the copies rounded after each step.

    Its parameter groups are those of the inner optimizer (the same dicts), so a learning rate set here is set there.
    The copies are in its state dict, under the parameters' names: what continues from it goes on exactly.

    Args:
        inner: the optimizer of the copies. parameters: those of the model, bfloat16. masters: the copies, float32,
            under the same names.
    """

    def __init__(self, inner: Optimizer, parameters: Mapping[str, Parameter], masters: Mapping[str, Parameter]) -> None:
        self.inner, self.parameters, self.masters = inner, dict(parameters), dict(masters)
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the copies with the parameters' gradients. ``closure`` runs once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, parameter in self.parameters.items():
            self.masters[name].grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        for name, parameter in self.parameters.items():
            parameter.copy_(self.masters[name])
            self.masters[name].grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def take_up(self, parameter: Tensor, where: Tensor) -> Parameter:
        """The copy of ``parameter``, which takes up its values at the entries where the bool tensor ``where`` is True:
        somebody has written them."""
        master = next(self.masters[name] for name, one in self.parameters.items() if one is parameter)
        master.copy_(torch.where(where, parameter.float(), master))
        return master

    def state_dict(self) -> dict[str, Any]:
        masters = {name: master.detach() for name, master in self.masters.items()}
        return {"inner": self.inner.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "masters" not in state_dict:
            raise UserError(
                "The checkpoint was trained in bf16-true by a version of topklm that had no master weights: continue "
                "it with that version, or start a new run from it with init_from."
            )
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        for name, master in self.masters.items():
            master.copy_(state_dict["masters"][name])
