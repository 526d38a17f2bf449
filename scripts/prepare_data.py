"""Tokenizes a source beforehand: `python scripts/prepare_data.py data=files data.paths=[texts] processes=8`."""

from omegaconf import DictConfig

from topklm.cli import command


@command("prepare_data")
def main(cfg: DictConfig) -> None:
    from topklm.checks import flag, whole_or_null
    from topklm.data import Choice
    from topklm.data.commands import prepare_data
    from topklm.training.assemble import instantiate_source
    from topklm.training.new_run import new_run_config

    cfg, config = new_run_config(cfg, own=("processes", "verify"))
    processes, verify = whole_or_null("processes", cfg.processes, "all cores"), flag("verify", cfg.verify)
    choice = Choice(instantiate_source(cfg), config.tokenizer, config.data.split, config.data.cache_dir)
    prepare_data(choice, processes or 0, verify)


if __name__ == "__main__":
    main()
