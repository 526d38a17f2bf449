"""Callbacks, one concern a file. They read the model through its public telemetry and the module through
``base.Watched``."""

from .adaptive_k import AdaptiveK
from .checkpoints import Checkpoints
from .dead_neurons import DeadNeurons
from .energy import Energy
from .garbage import Garbage
from .gradients import GradientNorms
from .interrupt import Interrupt
from .non_finite import NonFinite, NonFiniteLoss
from .probe import Probe
from .progress import ProgressBar
from .revive import Revive
from .samples import Samples
from .selection_bias import SelectionBias
from .sparsity import Sparsity
from .throughput import Throughput
from .together import check_together

__all__ = [
    "AdaptiveK",
    "Checkpoints",
    "DeadNeurons",
    "Energy",
    "Garbage",
    "GradientNorms",
    "Interrupt",
    "NonFinite",
    "NonFiniteLoss",
    "Probe",
    "ProgressBar",
    "Revive",
    "Samples",
    "SelectionBias",
    "Sparsity",
    "Throughput",
    "check_together",
]
