"""What the machine can do: native bfloat16, peak FLOP/s, a compiler for torch.compile; and which process this is."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil

import torch
from lightning.pytorch.utilities import rank_zero_only

from ..errors import UserError

# Dense bf16 peaks in FLOP/s from the makers' data sheets (no sparsity), matched in order against
# torch.cuda.get_device_name(), in whole words: an A10G is no A10, an RTX 3090 Ti no RTX 3090.
BF16_PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10", 125e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307e12),
)


def is_main_process() -> bool:
    """Whether this is rank 0, also before a Trainer exists."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def resolve_device(accelerator: str) -> str:
    """``cpu``, ``cuda`` or ``mps`` for Lightning's accelerator names. Raises UserError for one that is not there."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    best = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if accelerator == "auto":
        return best
    there = {"cpu": True, "cuda": has_cuda, "mps": has_mps, "gpu": has_cuda or has_mps}
    if accelerator not in there:
        raise UserError(f"trainer.accelerator={accelerator}: choose from auto, cpu, gpu, cuda, mps.")
    if not there[accelerator]:
        raise UserError(
            f"trainer.accelerator={accelerator}, but PyTorch finds no such device here: use trainer=cpu, or install a "
            f"build for your device."
        )
    return best if accelerator == "gpu" else accelerator


def has_native_bf16(device: str) -> bool:
    """Whether bfloat16 products run in hardware; emulated ones are slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def resolve_precision(precision: str | int, device: str) -> str:
    """Lightning's name of the precision: ``auto`` becomes bf16-mixed where that is native, else 32-true."""
    if precision == "auto":
        return "bf16-mixed" if has_native_bf16(device) else "32-true"
    return "32-true" if str(precision) == "32" else str(precision)


def peak_flops(device: str, precision: str) -> float | None:
    """Dense peak of one device in FLOP/s, or None where it is not known (CPUs, unlisted GPUs, other precisions than
    bf16)."""
    if device != "cuda" or not precision.startswith("bf16"):
        return None
    name = torch.cuda.get_device_name()
    words = r"\b{}\b(?! (?:Ti|D|Laptop)\b)"
    return next((peak for part, peak in BF16_PEAKS if re.search(words.format(part), name, re.IGNORECASE)), None)


def compile_obstacle(device: str) -> str | None:
    """Why torch.compile cannot work here, or None if it can."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    found = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None)
    return None if found else "no C++ compiler (g++ or clang++) is on the PATH"
