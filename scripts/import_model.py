"""Makes a run directory of a pretrained Llama: `python scripts/import_model.py pretrained=smollm2 out=runs/smollm2`."""

from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from topklm.cli import command


@command("import_model")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    from topklm.hub.importing import Pretrained, import_model

    out = Path(cfg.out)
    import_model(compose("train", ["topk=none"]), Pretrained.load(cfg.pretrained, cfg.revision), out, Console())


if __name__ == "__main__":
    main()
