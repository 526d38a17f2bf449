"""What the machine can do: native bfloat16, peak FLOP/s, a compiler for torch.compile; and which process this is."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from typing import NamedTuple

import torch

from ..errors import UserError


class Accelerator(NamedTuple):
    """What a maker's data sheet says of a device.

    Attributes:
        name: a part of ``torch.cuda.get_device_name()``. peak_flops: dense bf16 FLOP/s (no sparsity), accumulated in
            float32. watts: most power of the board. memory: bytes, with 10^9 to a GB; a little more is there, and the
            driver takes a little.
    """

    name: str
    peak_flops: float
    watts: float
    memory: float


# Matched in order, in whole words: an A10G is no A10, an RTX 3090 Ti no RTX 3090.
ACCELERATORS = (
    Accelerator("B200", 2250e12, 1000, 180e9),
    Accelerator("GH200", 989e12, 1000, 96e9),  # the processor beside it included
    Accelerator("H200 NVL", 835e12, 600, 141e9),
    Accelerator("H200", 989e12, 700, 141e9),
    Accelerator("H100 PCIe", 756e12, 350, 80e9),
    Accelerator("H100 NVL", 835e12, 400, 94e9),
    Accelerator("H100", 989e12, 700, 80e9),
    Accelerator("H800 PCIe", 756e12, 350, 80e9),
    Accelerator("H800", 989e12, 700, 80e9),
    Accelerator("H20", 148e12, 400, 96e9),
    Accelerator("A100-PCIE-40GB", 312e12, 250, 40e9),
    Accelerator("A100 80GB PCIe", 312e12, 300, 80e9),
    Accelerator("A100-SXM4-40GB", 312e12, 400, 40e9),
    Accelerator("A100", 312e12, 400, 80e9),
    Accelerator("A800 80GB PCIe", 312e12, 300, 80e9),
    Accelerator("A800", 312e12, 400, 80e9),
    Accelerator("A40", 150e12, 300, 48e9),
    Accelerator("A30", 165e12, 165, 24e9),
    Accelerator("A10", 125e12, 150, 24e9),
    Accelerator("L40S", 362e12, 350, 48e9),
    Accelerator("L40", 181e12, 300, 48e9),
    Accelerator("L4", 121e12, 72, 24e9),
    Accelerator("RTX 6000 Ada", 364e12, 300, 48e9),
    Accelerator("RTX A6000", 155e12, 300, 48e9),
    Accelerator("RTX 5090", 209e12, 575, 32e9),
    Accelerator("RTX 4090", 165e12, 450, 24e9),
    Accelerator("RTX 3090", 71e12, 350, 24e9),
    Accelerator("MI325X", 1307e12, 1000, 256e9),
    Accelerator("MI300X", 1307e12, 750, 192e9),
)


def find_accelerator(name: str) -> Accelerator | None:
    """The entry of ACCELERATORS for a device of this name, None where there is none."""
    words = r"\b{}\b(?! (?:Ti|D|Laptop)\b)"
    return next((known for known in ACCELERATORS if re.search(words.format(known.name), name, re.IGNORECASE)), None)


def is_main_process() -> bool:
    """Whether this is rank 0, also before a Trainer exists."""
    from lightning.pytorch.utilities import rank_zero_only  # takes seconds to import, and not all need it

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
    known = find_accelerator(torch.cuda.get_device_name())
    return known.peak_flops if known else None


def compile_obstacle(device: str) -> str | None:
    """Why torch.compile cannot work here, or None if it can."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    found = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None)
    return None if found else "no C++ compiler (g++ or clang++) is on the PATH"
