"""Callbacks, one concern a file. They read the model through its public telemetry and the module through
``base.Watched``."""

from .checkpoints import Checkpoints
from .dead_neurons import DeadNeurons
from .gradients import GradientNorms
from .interrupt import Interrupt
from .non_finite import NonFinite, NonFiniteLoss
from .probe import Probe
from .progress import ProgressBar
from .samples import Samples
from .sparsity import Sparsity
from .throughput import Throughput

__all__ = [
    "Checkpoints",
    "DeadNeurons",
    "GradientNorms",
    "Interrupt",
    "NonFinite",
    "NonFiniteLoss",
    "Probe",
    "ProgressBar",
    "Samples",
    "Sparsity",
    "Throughput",
]
