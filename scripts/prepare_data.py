"""Tokenizes a source beforehand: `python scripts/prepare_data.py data=files data.paths=[texts] processes=8`."""

from omegaconf import DictConfig

from topklm.cli import command


@command("prepare_data")
def main(cfg: DictConfig) -> None:
    from topklm.data import Choice
    from topklm.data.commands import prepare_data
    from topklm.training.assemble import instantiate_source
    from topklm.training.config import RunConfig

    config = RunConfig.from_hydra(cfg, own=("processes", "verify"))
    choice = Choice(instantiate_source(cfg), config.tokenizer, config.data.split, config.data.cache_dir)
    prepare_data(choice, cfg.processes or 0, cfg.verify)


if __name__ == "__main__":
    main()
