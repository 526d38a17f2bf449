"""The TopK transformer in pure PyTorch. It imports nothing but torch and itself, so this folder can travel with
a checkpoint."""

from .activation import topk
from .capture import capture
from .config import ModelConfig, TopKConfig
from .decode_weights import DecodeWeights
from .flops import Flops, count_flops, count_parameters, parameters_by_part
from .generate import generate
from .layers import document_numbers
from .site import Interval, TopKSite
from .transformer import TopKTransformer

__all__ = [
    "DecodeWeights",
    "Flops",
    "Interval",
    "ModelConfig",
    "TopKConfig",
    "TopKSite",
    "TopKTransformer",
    "capture",
    "count_flops",
    "count_parameters",
    "document_numbers",
    "generate",
    "parameters_by_part",
    "topk",
]
