"""The model of a run and its tokenizer, to be looked at and used outside of training."""

from __future__ import annotations

from pathlib import Path

from ..data import Tokenizer
from ..errors import UserError
from ..model import TopKTransformer
from ..model.config import ModelConfig, TopKConfig
from .checkpoint_files import load_checkpoint
from .derived import known


def load_model(run: str | Path) -> tuple[TopKTransformer, Tokenizer]:
    """The model of a run as it was when it was saved, on the CPU, in float32 and ``eval()``.

    Its sites keep the k that was in force then; ``model.set_k`` and ``model.using_k`` put others in force. TopK is done
    in the fastest way that the machine at hand has, whatever ``topk.impl`` was.

    Args:
        run: a run directory, whose last checkpoint is taken, or one of the checkpoints in it.

    Raises:
        UserError: there is no checkpoint or tokenizer, or one that cannot be read.
    """
    path = Path(run)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the directory of a run, or one of its checkpoints.")
    checkpoint = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    content = load_checkpoint(checkpoint)
    config, state = content["topklm"]["config"], content["state_dict"]
    tokenizer = Tokenizer.load(checkpoint.parent.parent / "tokenizer.json", config["tokenizer"].get("end_of_text"))
    topk = TopKConfig(**{**known(TopKConfig, config["topk"]), "impl": "auto"})
    shape = {**known(ModelConfig, config["model"]), "vocab_size": tokenizer.vocab_size, "topk": topk}
    model = TopKTransformer(ModelConfig(**shape))
    try:
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} does not fit the tokenizer.json beside it, or comes from another version of topklm: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval(), tokenizer
