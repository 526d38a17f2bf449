"""Models that take training steps side by side: ours with and without TopK, and peers of the same shape.

Every contender takes the same batch of random tokens through forward, backward, clipping and an optimizer step, with
the micro-batches of a training run. Peers compute all logits of a micro-batch, as their own training code does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..model import ModelConfig, TopKConfig, TopKTransformer
from ..training.compiling import compile_blocks
from ..training.config import RunConfig
from ..training.hardware import compile_obstacle, resolve_device, resolve_precision
from ..training.optim import build_optimizer
from ..training.precision import parameters_to_bfloat16
from ..training.sections import OptimizerConfig
from .telemetry import Telemetry

VOCAB_SIZE = 4096  # where the tokenizer brings its own: for timing alone none is needed
LITGPT_CHUNK = 128  # tokens per part of the loss in litgpt's pretraining
LLAMA, LITGPT = "transformers Llama", "litgpt GPT"


class Missing(Exception):
    """A peer whose package is not there; the message says how to get it."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all contenders of a comparison share.

    Attributes:
        config: the run's. model: its model. device, precision: where and how. optimizer: of all contenders.
        compile: torch.compile ours block by block and peers as a whole.
        steps: optimizer steps per call of a contender.
    """

    config: RunConfig
    model: ModelConfig
    device: str
    precision: str
    optimizer: OptimizerConfig
    compile: bool = False
    steps: int = 1

    @classmethod
    def of(cls, config: RunConfig, steps: int = 1) -> Bench:
        """That of the run's own settings."""
        device = resolve_device(config.trainer.accelerator)
        if config.trainer.compile and (obstacle := compile_obstacle(device)):
            raise UserError(f"trainer.compile=true, but {obstacle}: leave it out.")
        return cls(
            config,
            config.model_config(config.tokenizer.vocab_size or VOCAB_SIZE),
            device,
            resolve_precision(config.trainer.precision, device),
            config.optimizer,
            config.trainer.compile,
            steps,
        )

    def ours(self, topk: bool = True, telemetry: bool = False, log_every: int | None = None) -> Callable[[], None]:
        """Our model as configured, or its dense twin. Without ``telemetry`` its sites count nothing; with it a row is
        logged every ``log_every`` steps, None as in the run."""
        torch.manual_seed(self.config.seed)
        shape = self.model if topk else dense_twin(self.model)
        model = TopKTransformer(shape).to(self.device)
        model.set_checkpointing(self.config.trainer.activation_checkpointing)
        if self.precision == "bf16-true":
            parameters_to_bfloat16(model)
        for site in model.sites:
            site.record = telemetry
        if self.compile:
            compile_blocks(model)
        optimizer = build_optimizer(model, self.optimizer)
        told = Telemetry(model, self.config, log_every) if telemetry else None
        return self.stepper(model, TopKTransformer.loss, optimizer, told)

    def peer(self, name: str) -> Callable[[], None]:
        """LLAMA or LITGPT, with the fused AdamW of the optimizer's settings. Raises Missing without its package."""
        torch.manual_seed(self.config.seed)
        model, loss = {LLAMA: llama, LITGPT: litgpt}[name](self.model)
        model = model.to(self.device, torch.bfloat16 if self.precision == "bf16-true" else torch.float32)
        if self.compile:
            model.compile()
        o = self.optimizer
        adamw = torch.optim.AdamW(
            model.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
        )
        return self.stepper(model, loss, adamw)

    def stepper(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        telemetry: Telemetry | None = None,
    ) -> Callable[[], None]:
        """A call that trains ``model`` for ``steps`` steps, always on the same random tokens."""
        model.train()
        length = self.model.seq_len
        windows = self.config.training.windows_per_step(length) // self.config.trainer.ranks
        micro = self.config.training.micro_windows(length, windows, self.device)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.model.vocab_size, (windows, length + 1), generator=generator).to(self.device)
        clip = self.config.training.clip_grad_norm or float("inf")

        def call() -> None:
            for _ in range(self.steps):
                for micro_bl in ids.split(micro):
                    with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
                        part = loss(model, micro_bl[:, :-1], micro_bl[:, 1:]) / (windows // micro)
                    part.backward()
                if telemetry is not None:
                    telemetry.tell("on_before_optimizer_step", optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                if telemetry is not None:
                    telemetry.step()

        return call


def dense_twin(model: ModelConfig) -> ModelConfig:
    """The same without TopK."""
    return dataclasses.replace(model, topk=TopKConfig(sites=()))


def llama(c: ModelConfig) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The same shape in ``transformers``, and its loss. It has no QK-norm: two gains per block fewer, if ours has."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise Missing(f"{LLAMA} is left out: pip install 'topklm[bench]' brings transformers.") from error
    assert c.d_ff is not None
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            max_position_embeddings=c.seq_len,
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=c.tied,
            use_cache=False,
        )
    )

    def loss(model: nn.Module, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        logits = model(input_ids=ids_bt).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets_bt.flatten())

    return model, loss


def litgpt(c: ModelConfig) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The same shape in ``litgpt`` (its Llama: RMSNorm, rotary positions, SwiGLU, no biases), and its loss. No QK-norm,
    as with ``llama``."""
    try:
        from litgpt.config import Config
        from litgpt.model import GPT
    except ImportError as error:
        raise Missing(
            f"{LITGPT} is left out ({error}): pip install --no-deps litgpt psutil jsonargparse brings it; with its "
            f"dependencies pip would put huggingface_hub and transformers back to older versions."
        ) from error
    model = GPT(
        Config(
            block_size=c.seq_len,
            vocab_size=c.vocab_size,
            padded_vocab_size=c.vocab_size,
            n_layer=c.n_layers,
            n_embd=c.d_model,
            n_head=c.n_heads,
            n_query_groups=c.n_kv_heads,
            intermediate_size=c.d_ff,
            norm_class_name="RMSNorm",
            norm_eps=c.norm_eps,
            mlp_class_name="LLaMAMLP",
            rotary_percentage=1.0,
            rope_base=round(c.rope_theta),
            parallel_residual=False,
            bias=False,
        )
    )
    if c.tied:
        model.lm_head.weight = model.transformer.wte.weight

    def loss(model: nn.Module, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        logits_nv, targets_n = model(ids_bt).flatten(0, 1), targets_bt.flatten()
        parts = zip(logits_nv.split(LITGPT_CHUNK), targets_n.split(LITGPT_CHUNK), strict=True)
        sums = [F.cross_entropy(logits, targets, reduction="sum") for logits, targets in parts]
        return torch.stack(sums).sum() / targets_n.numel()

    return model, loss
