"""Trains the variants of a study and compares them: `python scripts/study.py study=recipe`."""

from omegaconf import DictConfig

from topklm.cli import command


@command("study")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    from topklm.reports.study import Study, run_study

    run_study(Study.from_hydra(cfg), Console())


if __name__ == "__main__":
    main()
