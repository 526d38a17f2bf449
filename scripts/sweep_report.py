"""Compares the runs of a sweep, or of several: `python scripts/sweep_report.py sweep=sweeps/DIR`."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from topklm.cli import command


@command("sweep_report")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    from topklm.checks import text
    from topklm.reports.write import report_sweep

    folders = list(cfg.sweep) if isinstance(cfg.sweep, ListConfig) else [cfg.sweep]
    out = Path(text("out", cfg.out)) if cfg.out is not None else None
    report_sweep([Path(text("sweep", folder)) for folder in folders], out, Console())


if __name__ == "__main__":
    main()
