"""What a source holds, as a tokenizer sees it: `python scripts/data_card.py data=... tokenizer=...`."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from topklm.cli import command


@command("data_card")
def main(cfg: DictConfig) -> None:
    from topklm.checks import whole_or_null
    from topklm.data import Choice
    from topklm.data.commands import write_card
    from topklm.training.assemble import instantiate_source
    from topklm.training.new_run import new_run_config

    cfg, config = new_run_config(cfg, own=("limit",))
    limit = whole_or_null("limit", cfg.limit, "all documents")
    choice = Choice(instantiate_source(cfg), config.tokenizer, config.data.split, config.data.cache_dir)
    write_card(choice, limit, config.seed, Path(HydraConfig.get().runtime.output_dir), config.plain)


if __name__ == "__main__":
    main()
