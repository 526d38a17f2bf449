"""Trains a byte-level BPE tokenizer: `python scripts/train_tokenizer.py data=files data.paths=[texts]`."""

from pathlib import Path

from omegaconf import DictConfig

from topklm.cli import command


@command("train_tokenizer")
def main(cfg: DictConfig) -> None:
    from topklm.checks import flag, text
    from topklm.data.commands import train_tokenizer
    from topklm.training.assemble import instantiate_source
    from topklm.training.new_run import new_run_config

    cfg, config = new_run_config(cfg, own=("out", "overwrite"))
    out, overwrite = Path(text("out", cfg.out)), flag("overwrite", cfg.overwrite)
    train_tokenizer(instantiate_source(cfg), config.tokenizer, config.data.val_fraction, out, overwrite)


if __name__ == "__main__":
    main()
