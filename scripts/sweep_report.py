"""Compares the runs of a sweep, or of several: `python scripts/sweep_report.py sweep=sweeps/DIR`."""

from pathlib import Path

from omegaconf import DictConfig

from topklm.cli import command


@command("sweep_report")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    from topklm.reports.write import report_sweep

    folders = [cfg.sweep] if isinstance(cfg.sweep, str) else list(cfg.sweep)
    report_sweep([Path(str(folder)) for folder in folders], Path(cfg.out) if cfg.out else None, Console())


if __name__ == "__main__":
    main()
