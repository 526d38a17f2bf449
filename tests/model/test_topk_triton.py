"""The GPU kernels of TopK where there is no GPU: run by triton's interpreter, and compiled for one."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from topklm.model import implementations, topk
from topklm.model.implementations import resolve_impl

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_the_kernels_in_the_interpreter():
    cases = Path(__file__).with_name("triton_in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-1000:]


def compiled(kernel, types, constants, warps):
    """The machine code of a kernel for an H100, made without one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in types}
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm


@needs_triton
@pytest.mark.parametrize(
    ("d", "x", "added", "y", "rest"),
    [(100, "bf16", None, "bf16", {}), (2048, "fp32", "bf16", "fp32", {"bias_ptr": "*fp32"})],
)
def test_the_kernels_compile_for_a_gpu(d, x, added, y, rest, tmp_path, monkeypatch):
    """To ptx and machine code, with loads of 16 bytes, and with nothing kept outside of registers."""
    from topklm.model import topk_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows, block, warps = topk_triton.tiling(d)
    tile = {"ROWS": rows, "BLOCK": block}
    types = {
        "x_ptr": f"*{x}", "k_ptr": "*i64", "y_ptr": f"*{y}", "bits_ptr": "*u8", "fired_ptr": "*i32",
        "sums_ptr": "*fp32", "n": "i32", "d": "i32", **({"added_ptr": f"*{added}"} if added else {}), **rest,
    }  # fmt: skip
    absent = {name: None for name in ("added_ptr", "bias_ptr") if name not in types}
    constants = {**tile, **absent, "MAGNITUDE": bool(rest), "RELU": bool(rest)}
    try:
        forward = compiled(topk_triton._forward_kernel, types, constants, warps)
    except RuntimeError as error:
        pytest.skip(f"this triton cannot compile for a GPU here: {error}")
    assert "ld.global.v4" in forward["ptx"]
    assert len(forward["cubin"]) > 1000
    types = {"grad_ptr": f"*{y}", "bits_ptr": "*u8", "out_ptr": f"*{y}", "second_ptr": "*bf16", "n": "i32", "d": "i32"}
    backward = compiled(topk_triton._backward_kernel, types, tile, warps)
    assert "st.global.v4" in backward["ptx"]
    assert len(backward["cubin"]) > 1000
    for code in (forward, backward):
        assert not re.search(r"\b(ld|st)(\.\w+)*\.local\b", code["ptx"])


def test_without_triton_or_a_gpu_it_says_so(monkeypatch):
    with pytest.raises(ValueError, match="topk.impl=triton (runs on a GPU|needs the package)"):
        topk(torch.randn(2, 4), 2, impl="triton")
    monkeypatch.setattr(implementations, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="needs the package triton: pip install 'topklm\\[triton\\]'"):
        topk(torch.randn(2, 4), 2, impl="triton")
    assert resolve_impl("auto", torch.device("cuda"), torch.bfloat16) == "reference"


def test_a_gpu_takes_the_kernel_where_it_can(monkeypatch):
    monkeypatch.setattr(implementations, "has_triton", lambda: True)
    gpu = torch.device("cuda")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert resolve_impl("auto", gpu, dtype) == resolve_impl("triton", gpu, dtype) == "triton"
    assert resolve_impl("auto", gpu, torch.float64) == "reference"
    with pytest.raises(ValueError, match="topk.impl=triton runs on a GPU in float16, bfloat16 or float32, not on cuda"):
        resolve_impl("triton", gpu, torch.float64)
