"""Trains a byte-level BPE tokenizer: `python scripts/train_tokenizer.py data=files data.paths=[texts]`."""

from pathlib import Path

from omegaconf import DictConfig

from topklm.cli import command


@command("train_tokenizer")
def main(cfg: DictConfig) -> None:
    from topklm.data.commands import train_tokenizer
    from topklm.training.assemble import instantiate_source
    from topklm.training.config import RunConfig

    config = RunConfig.from_hydra(cfg, own=("out", "overwrite"))
    train_tokenizer(instantiate_source(cfg), config.tokenizer, config.data.val_fraction, Path(cfg.out), cfg.overwrite)


if __name__ == "__main__":
    main()
