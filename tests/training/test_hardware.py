"""What is known of the hardware."""

import pytest
import torch

from topklm.errors import UserError
from topklm.training import hardware
from topklm.training.hardware import ACCELERATORS, find_accelerator, peak_flops, resolve_device, resolve_precision


@pytest.mark.parametrize(
    ("name", "teraflops"),  # dense bf16, from the makers' data sheets
    [
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA GeForce RTX 2080 Ti", None),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L40", 181),
        ("NVIDIA H800", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A40", 150),
        ("NVIDIA A30", 165),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA GeForce RTX 5090", 209),
        ("NVIDIA GeForce RTX 5090 D", None),
        ("AMD Instinct MI325X", 1307),
        ("Quadro RTX 6000", None),
        ("NVIDIA A4000", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GB200", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks(monkeypatch, name, teraflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    expected = None if teraflops is None else teraflops * 1e12
    assert peak_flops("cuda", "bf16-mixed") == peak_flops("cuda", "bf16-true") == expected
    assert peak_flops("cuda", "32-true") is None
    assert peak_flops("cpu", "bf16-mixed") is None


@pytest.mark.parametrize(
    ("name", "watts"),  # of the board, from the makers' data sheets
    [
        ("H100", 700),
        ("h100", 700),
        ("NVIDIA H100 PCIe", 350),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A100 80GB PCIe", 300),
        ("NVIDIA A100-PCIE-40GB", 250),
        ("L40S", 350),
        ("RTX 4090", 450),
        ("TPU v5e", None),
        ("H", None),
    ],
)
def test_power(name, watts):
    known = find_accelerator(name)
    assert (known.watts if known else None) == watts


def test_every_accelerator_is_found_by_its_own_name():
    assert all(find_accelerator(known.name) is known for known in ACCELERATORS)


def test_devices(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert resolve_device("auto") == ("cuda" if there else "cpu")
        assert resolve_device("cpu") == "cpu"
        if there:
            assert resolve_device("gpu") == resolve_device("cuda") == "cuda"
        else:
            with pytest.raises(UserError, match="trainer.accelerator=gpu, but PyTorch finds no such device"):
                resolve_device("gpu")
    with pytest.raises(UserError, match="trainer.accelerator=tpu: choose from"):
        resolve_device("tpu")


@pytest.mark.parametrize("native", [True, False])
def test_precision(monkeypatch, native):
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: native)
    assert resolve_precision("auto", "cpu") == ("bf16-mixed" if native else "32-true")
    assert [resolve_precision(given, "cpu") for given in (32, "32", "bf16-true")] == ["32-true", "32-true", "bf16-true"]
