"""Pretrains a TopK language model, or continues a run. `python train.py --help` lists the choices."""

from omegaconf import DictConfig

from topklm.cli import command


@command("train")
def main(cfg: DictConfig) -> float:
    from topklm.training import pretrain  # torch and Lightning load only once the config stands

    return pretrain(cfg)


if __name__ == "__main__":
    main()
