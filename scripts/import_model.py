"""Makes a run directory of a pretrained Llama: `python scripts/import_model.py pretrained=smollm2 out=runs/smollm2`."""

from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from topklm.cli import command


@command("import_model")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    from topklm.checks import text
    from topklm.hub.importing import Pretrained, import_model

    pretrained = Pretrained.load(cfg.pretrained, cfg.revision)
    import_model(compose("train", ["topk=none"]), pretrained, Path(text("out", cfg.out)), Console(), cfg.end_of_text)


if __name__ == "__main__":
    main()
