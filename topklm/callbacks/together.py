"""Checks callbacks against each other, before a run begins."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from .adaptive_k import AdaptiveK
from .dead_neurons import DeadNeurons
from .revive import Revive
from .selection_bias import SelectionBias
from .sparsity import Sparsity


def check_together(callbacks: Sequence[L.Callback]) -> None:
    """Raises ValueError for a callback that rests on the telemetry of one that is not there or switched off."""
    measured = any(isinstance(callback, Sparsity) and callback.enabled for callback in callbacks)
    counted = measured and any(isinstance(callback, DeadNeurons) for callback in callbacks)
    for callback in callbacks:
        if isinstance(callback, AdaptiveK) and callback.enabled and not measured:
            raise ValueError(
                "callbacks.adaptive_k.enabled=true trades k by the energy kept: it needs "
                "callbacks.sparsity.enabled=true, which measures it."
            )
        if isinstance(callback, Revive | SelectionBias) and callback.enabled and not counted:
            name = "revive" if isinstance(callback, Revive) else "selection_bias"
            raise ValueError(
                f"callbacks.{name}.enabled=true looks for silent neurons: it needs callbacks.dead_neurons and "
                f"callbacks.sparsity.enabled=true, which count."
            )
