"""Benchmarks: contenders timed in one process, interleaved, compared by medians. Run them with
``scripts/benchmark.py``."""

from .run import run_benchmark

__all__ = ["run_benchmark"]
