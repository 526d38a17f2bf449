"""The GPU kernels of the product by columns where there is no GPU: run by triton's interpreter, and compiled for
one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_kernels_in_the_interpreter():
    cases = Path(__file__).with_name("column_product_in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-1000:]


def test_the_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    """To machine code of an H100, with loads of 16 bytes and nothing kept outside of registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from topklm.model import column_product_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = {"index_ptr": "*i32", "value_ptr": "*fp32", "count_ptr": "*i32", "inputs": "i32"}
    for kernel, types, constants in (
        (kernels._find_kernel, {"x_ptr": "*bf16", **found}, {"BLOCK": kernels.BLOCK}),
        (
            kernels._sum_kernel,
            {**found, "columns_ptr": "*bf16", "y_ptr": "*bf16", "outputs": "i32"},
            {"COLUMNS": kernels.COLUMNS, "OUTPUTS": kernels.OUTPUTS},
        ),
    ):
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in types}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        try:
            code = triton.compile(ASTSource(kernel, signature, constants, aligned), GPUTarget("cuda", 90, 32)).asm
        except RuntimeError as error:
            pytest.skip(f"this triton cannot compile for a GPU here: {error}")
        assert "ld.global.v4" in code["ptx"]
        assert ".local" not in code["ptx"]
        assert len(code["cubin"]) > 1000
