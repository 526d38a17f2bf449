"""Measures the product against its twins and peers: `python scripts/benchmark.py what=step`."""

from omegaconf import DictConfig

from topklm.allocator import keep_memory
from topklm.cli import command


@command("benchmark")
def main(cfg: DictConfig) -> None:
    keep_memory()
    from topklm.benchmarks import run_benchmark

    run_benchmark(cfg)


if __name__ == "__main__":
    main()
