"""TopK on a CPU by threshold search: compiles ``topk_threshold.c`` once, then calls it on the rows of a tensor.

torch.topk on a CPU spends most of its time moving (value, index) pairs about. The search in C keeps a row in cache and
counts for the telemetry on the way, which makes a TopK layer several times cheaper. It needs a C compiler (``cc``,
``gcc`` or ``clang``) the first time; the library is then cached under the user's cache directory, keyed by source,
flags, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from .bits import packed_width
from .topk_reference import sum_type

# Reassociation lets the sums of the telemetry vectorise. The output is copied bits, so no flag can change it.
FLAGS = [
    "-O3",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fassociative-math",
    "-fno-signed-zeros",
]
NATIVE = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else ["-mcpu=native"]
# Tried in turn: Apple's clang has no OpenMP, and some compilers know no native target.
FLAG_SETS = [[*FLAGS, *NATIVE, "-fopenmp"], [*FLAGS, *NATIVE], FLAGS]
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ELEMENTS_PER_THREAD = 1 << 15  # below this a second thread costs more than it brings


class NoCompiler(RuntimeError):
    """The C library could not be built here; the message says why."""


def _processor() -> str:
    """What a native target depends on: a cache shared by several kinds of machine must not mix them up."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        return next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def _build(command: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        subprocess.run([*command, "-o", str(built)], check=True, capture_output=True, text=True, timeout=120)
        os.replace(built, target)  # whole or not at all: another process may be building the same file


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled search. Raises NoCompiler with the reason where it cannot be had."""
    return _declare(compiled(Path(__file__).with_suffix(".c")))


def compiled(source: Path) -> ctypes.CDLL:
    """The library of a C file, built at its first use and then found in the cache. Raises NoCompiler with the reason
    where it cannot be had."""
    found = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), "")
    compiler = shlex.split(found)  # CC may come with options
    if not compiler or shutil.which(compiler[0]) is None:
        raise NoCompiler("no C compiler found (cc, gcc or clang)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topklm"
    reason = ""
    for flags in FLAG_SETS:
        try:
            version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=30).stdout
            key = hashlib.sha256("\0".join([source.read_text(), *flags, version, _processor()]).encode()).hexdigest()[
                :16
            ]
            target = cache / f"{source.stem}-{key}.so"
            if not target.exists():
                _build([*compiler, *flags, str(source)], target)
            return ctypes.CDLL(str(target))
        except subprocess.CalledProcessError as error:
            reason = next((line for line in error.stderr.splitlines() if "error" in line), str(error))
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
    raise NoCompiler(f"{found} could not build {source.name}: {reason}")


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name in NAMES.values():
        forward, backward = getattr(lib, f"topk_{name}"), getattr(lib, f"mask_{name}")
        forward.argtypes = [pointer] * 8 + [size] * 3 + [flag] * 5
        backward.argtypes = [pointer] * 4 + [size] * 2 + [flag]
        forward.restype = backward.restype = None
    return lib


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // ELEMENTS_PER_THREAD))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def topk_forward(
    x_nd: Tensor,
    added_nd: Tensor | None,
    k: int,
    select: str,
    relu: bool,
    stats: bool,
    bias_d: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same contract as ``topk_reference.topk_forward``, of ``x + added``, for contiguous float32 or bfloat16 (each its
    own) on a CPU and 1 <= k; ``bias_d`` is contiguous float32. What was kept comes packed, as by ``bits.pack``."""
    n, d = x_nd.shape
    threads = _threads(n * d)
    dtype = sum_type(x_nd, added_nd)
    y_nd, bits_nw = torch.empty(n, d, dtype=dtype), torch.empty(n, packed_width(d), dtype=torch.uint8)
    scratch = torch.empty(threads, 3 * d + 2, dtype=torch.int32)
    fired = torch.zeros(threads if stats else 0, d, dtype=torch.int32)
    sums = torch.zeros(threads if stats else 0, 3, dtype=torch.float64)
    counters = (fired.data_ptr(), sums.data_ptr()) if stats else (None, None)
    run = getattr(library(), f"topk_{NAMES[dtype]}")
    tensors = (x_nd, added_nd, y_nd, bits_nw, bias_d)
    narrow = (x_nd.dtype == torch.bfloat16, added_nd is not None and added_nd.dtype == torch.bfloat16)
    options = (*narrow, select == "magnitude", relu, threads)
    run(*map(_pointer, tensors), *counters, scratch.data_ptr(), n, d, min(k, d), *options)
    if not stats:
        empty = torch.empty(0)
        return y_nd, bits_nw, empty.to(torch.int32), empty
    return y_nd, bits_nw, fired.sum(0, dtype=torch.int32), sums.sum(0).float()


def mask_gradient(grad_nd: Tensor, bits_nw: Tensor, second: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """``grad`` where a bit is set, zero elsewhere; and the same in bfloat16 where ``second`` is that. Contiguous
    float32 or bfloat16 on a CPU."""
    out_nd = torch.empty_like(grad_nd)
    second_nd = None if second is None else torch.empty(grad_nd.shape, dtype=torch.bfloat16)
    run = getattr(library(), f"mask_{NAMES[grad_nd.dtype]}")
    run(*map(_pointer, (grad_nd, bits_nw, out_nd, second_nd)), *grad_nd.shape, _threads(grad_nd.numel()))
    return out_nd, second_nd
