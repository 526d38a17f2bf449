"""Draws the pictures of a run, finished or not: `python scripts/plot_run.py run=runs/DIR`."""

from omegaconf import DictConfig

from topklm.cli import command


@command("plot_run")
def main(cfg: DictConfig) -> None:
    from topklm.training.plots import redraw

    for picture in redraw(cfg.run):
        print(picture)


if __name__ == "__main__":
    main()
