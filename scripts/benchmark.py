"""Measures the product against its twins and peers: `python scripts/benchmark.py what=step`."""

import hydra
from omegaconf import DictConfig

from topklm.cli import command


@command
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    from topklm.benchmarks import run_benchmark

    run_benchmark(cfg)


if __name__ == "__main__":
    main()
