"""Callbacks, one concern a file. They read the model through its public telemetry and the module through
``base.Watched``."""

from .checkpoints import Checkpoints
from .dead_neurons import DeadNeurons
from .interrupt import Interrupt
from .non_finite import NonFinite, NonFiniteLoss
from .progress import ProgressBar
from .samples import Samples
from .sparsity import Sparsity
from .throughput import Throughput

__all__ = [
    "Checkpoints",
    "DeadNeurons",
    "Interrupt",
    "NonFinite",
    "NonFiniteLoss",
    "ProgressBar",
    "Samples",
    "Sparsity",
    "Throughput",
]
