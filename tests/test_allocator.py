"""Memory that tensors give back is kept: another tensor of the size costs no page faults."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from topklm.allocator import keep_memory

CODE = """
import resource
from topklm.allocator import keep_memory
{call}
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(2**24)
before = faults()
for _ in range(50):
    torch.zeros(2**24)
print(faults() - before)
"""

ALL = 50 * 2**26 // resource.getpagesize()  # each tensor in memory that was not there before

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
glibc = pytest.mark.skipif(
    sys.platform != "linux"
    or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    or (HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text()),
    reason="needs glibc, and a system whose pages are small unless asked for",
)


def faults(call="", **variables):
    """Page faults of fifty tensors of 64 MB, in small pages (blocks below 32 MB glibc keeps anyway)."""
    env = {name: v for name, v in os.environ.items() if name != "GLIBC_TUNABLES" and not name.startswith("MALLOC_")}
    env |= {"THP_MEM_ALLOC_ENABLE": "0"} | variables
    command = [sys.executable, "-c", CODE.format(call=call)]
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


@glibc
def test_memory_is_kept():
    """Not one block serves all: what aligning leaves over, glibc sets aside as it falls out, and that keeps a freed
    block from joining its neighbours. Up to twelve tensors were seen to take new memory until nothing more is."""
    assert faults() >= ALL
    assert faults("keep_memory()") < ALL / 2


@glibc
@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_who_tunes_the_allocator_is_not_overruled(variable):
    value = "glibc.malloc.arena_max=2" if variable == "GLIBC_TUNABLES" else "2"
    assert faults("keep_memory()", **{variable: value}) >= ALL


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_pages_are_large_unless_told_otherwise(monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", {"MALLOC_ARENA_MAX": "2"} | ({"THP_MEM_ALLOC_ENABLE": given} if given else {}))
    keep_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == expected


def test_another_c_library(monkeypatch):
    class Other:
        """Without gnu_get_libc_version and mallopt."""

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    keep_memory()
