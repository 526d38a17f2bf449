"""Debian's documentation as text to train on: `python scripts/fetch_debian_docs.py`, then train.py data=debian_docs."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from topklm.cli import command


@command("fetch_debian_docs")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    from topklm.checks import text, whole_or_null
    from topklm.data.debian.fetch import count_table, fetch
    from topklm.data.processes import cores

    console, packages = Console(), OmegaConf.to_container(cfg, resolve=True)["packages"]
    packages = [packages] if isinstance(packages, str) else packages or []
    processes = whole_or_null("processes", cfg.processes, "all cores") or cores()
    counts = fetch(packages, Path(text("out", cfg.out)), processes, console)
    console.print(count_table(counts))
    console.print("The texts keep the licences of their packages, which the copyright files state.")
    console.print(f"written to {cfg.out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
