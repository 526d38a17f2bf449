"""Lets the model speak at each validation: continuations of fixed prompts, with a fixed seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import torch

from ..model import DecodeWeights, generate
from .base import is_number, require, require_whole, watched


class Samples(L.Callback):
    """Appends ``{step, prompt, continuation}`` to ``samples.jsonl`` in the run directory, and logs the texts where a
    logger takes text.

    Args:
        prompts: texts to continue. One that leaves less room in the model's window than the new tokens need, and than
            half of it, keeps its end only.
        max_new_tokens, temperature, top_p, seed: of the sampling.
        sparse: whether it reads only the columns of weights that meet non-zeros: ``auto`` (where it pays), True or
            False. The copies that this needs are made anew at each validation and kept no longer.

    Attributes:
        encode, decode: text to token ids and back; set by the training run.
        latest: the last (prompt, continuation) pairs.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]

    def __init__(
        self,
        prompts: Sequence[str] = ("The city of", "In 1905, the physicist", "The animal"),
        max_new_tokens: int = 48,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        sparse: bool | str = "auto",
    ) -> None:
        texts = isinstance(prompts, Sequence) and all(isinstance(prompt, str) for prompt in prompts)
        require(texts and not isinstance(prompts, str), "samples.prompts", prompts, "a list of texts")
        require_whole("samples.max_new_tokens", max_new_tokens)
        require(is_number(temperature, 0), "samples.temperature", temperature, "a number of 0 or more")
        require(is_number(top_p, 0, 1) and top_p > 0, "samples.top_p", top_p, "a share above 0 and at most 1")
        require_whole("samples.seed", seed, 0)
        require(sparse in (True, False, "auto"), "samples.sparse", sparse, "auto, true or false")
        self.prompts = list(prompts)
        self.max_new_tokens, self.temperature, self.top_p, self.seed = max_new_tokens, temperature, top_p, seed
        self.sparse = sparse
        self.latest: list[tuple[str, str]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank != 0:
            return
        weights = DecodeWeights(watched(pl_module).model, self.sparse, len(self.prompts) * self.max_new_tokens)
        with trainer.precision_plugin.val_step_context():
            self.latest = [(prompt, self._continue(prompt, pl_module, weights)) for prompt in self.prompts]
        with open(Path(trainer.default_root_dir) / "samples.jsonl", "a", encoding="utf-8") as file:
            for prompt, continuation in self.latest:
                entry = {"step": pl_module.global_step, "prompt": prompt, "continuation": continuation}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                columns = ["step", "prompt", "continuation"]
                logger.log_text(
                    "samples", columns=columns, data=[[pl_module.global_step, *pair] for pair in self.latest]
                )

    def _continue(self, prompt: str, pl_module: L.LightningModule, weights: DecodeWeights) -> str:
        model = watched(pl_module).model
        room = max(model.config.seq_len - self.max_new_tokens, -(-model.config.seq_len // 2))
        ids = torch.tensor([self.encode(prompt)[-room:]], device=pl_module.device)
        out = generate(
            model,
            ids,
            self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            sparse=weights,
        )
        return self.decode(out[0, ids.shape[1] :].tolist())
