"""Pretrains a TopK language model, or continues a run, or says what a run would need (`plan=true`).
`python train.py --help` lists the choices."""

from omegaconf import DictConfig

from topklm.allocator import keep_memory
from topklm.cli import command, switched_on


@command("train")
def train(cfg: DictConfig) -> float:
    keep_memory()
    from topklm.training.pretrain import pretrain  # torch and Lightning load only once the config stands

    return pretrain(cfg)


@command("plan")
def plan(cfg: DictConfig) -> None:
    keep_memory()
    from topklm.plan import print_plan

    print_plan(cfg)


if __name__ == "__main__":
    plan() if switched_on("plan") else train()
