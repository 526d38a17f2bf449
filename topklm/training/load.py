"""The model of a run and its tokenizer, to be looked at and used outside of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..data import Tokenizer
from ..errors import UserError
from ..model import TopKTransformer
from .checkpoint_files import checkpoint_at, load_checkpoint
from .derived import stored_model


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
    checkpoint = checkpoint_at(path)
    content = load_checkpoint(checkpoint)
    config, state = content["topklm"]["config"], content["state_dict"]
    tokenizer = Tokenizer.load(checkpoint.parent.parent / "tokenizer.json", config["tokenizer"].get("end_of_text"))
    shape = stored_model(config, tokenizer.vocab_size)
    model = TopKTransformer(replace(shape, topk=replace(shape.topk, impl="auto")))
    try:
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} does not fit the tokenizer.json beside it, or comes from another version of topklm: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval(), tokenizer
