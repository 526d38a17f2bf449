"""From a Llama of ``transformers`` to a TopKTransformer: settings and weights, or a sentence on what does not fit.

Both turn the pairs (i, i + e/2) of a head of width e, put a gain on RMSNorm and compute ``down(silu(gate) * up)``. Ours
stacks q, k, v and gate, up into one matrix each; muP factors and QK-norm are off. v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

# Names of a block's matrices and gains, ours and theirs; several of theirs are stacked.
BLOCK = {
    "norm_attn.gain": ["input_layernorm.weight"],
    "attn.qkv.weight": [f"self_attn.{part}_proj.weight" for part in "qkv"],
    "attn.out.weight": ["self_attn.o_proj.weight"],
    "norm_mlp.gain": ["post_attention_layernorm.weight"],
    "mlp.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "mlp.down.weight": ["mlp.down_proj.weight"],
}


def model_settings(config: Any) -> dict[str, Any]:
    """The settings of our ``model`` section for a ``transformers`` config.

    Raises:
        UserError: it is no Llama, or has something that our blocks do not.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    width = config.hidden_size // config.num_attention_heads if config.model_type == "llama" else 0
    for ok, what in (
        (config.model_type == "llama", f"is a {config.model_type}, and topklm's blocks hold a llama"),
        (
            getattr(config, "hidden_act", "silu") in ("silu", "swish"),
            f"has the activation {getattr(config, 'hidden_act', None)}, and topklm's MLP has silu",
        ),
        (not getattr(config, "attention_bias", False), "has biases in its attention, and topklm's has none"),
        (not getattr(config, "mlp_bias", False), "has biases in its MLP, and topklm's has none"),
        (kind == "default", f"scales its rotary positions ({kind}), and topklm does not"),
        (rope.get("partial_rotary_factor", 1.0) == 1.0, "turns a part of each head only, and topklm turns all of it"),
        (
            getattr(config, "head_dim", None) in (None, width),
            f"has heads {getattr(config, 'head_dim', None)} wide, and topklm divides the width among them ({width})",
        ),
    ):
        if not ok:
            raise UserError(f"The model {what}: choose another.")
    return {
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "d_ff": config.intermediate_size,
        "seq_len": config.max_position_embeddings,
        "rope_theta": float(rope["rope_theta"]),
        "qk_norm": False,
        "tied": bool(config.tie_word_embeddings),
        "norm_eps": float(config.rms_norm_eps),
        "mup_base_width": None,
    }


def convert(theirs: Mapping[str, Tensor], n_layers: int, tied: bool, vocab_size: int) -> dict[str, Tensor]:
    """Weights of a ``LlamaForCausalLM`` under the names of a dense TopKTransformer, in float32.

    Args:
        theirs: its state dict. n_layers, tied: of the model. vocab_size: of the tokenizer; embeddings beyond it, which
            pad a vocabulary to a round number, are left out.

    Raises:
        UserError: there are weights too many, such as biases, or too few.
    """
    left = dict(theirs)
    wanted = {"embed.weight": ["model.embed_tokens.weight"], "norm_out.gain": ["model.norm.weight"]}
    wanted["head.weight"] = wanted["embed.weight"] if tied else ["lm_head.weight"]
    for layer in range(n_layers):
        for name, parts in BLOCK.items():
            wanted[f"blocks.{layer}.{name}"] = [f"model.layers.{layer}.{part}" for part in parts]
    lacking = sorted({part for parts in wanted.values() for part in parts} - left.keys())
    if lacking:
        raise UserError(f"The model has no weights {lacking[0]}: choose another.")
    ours = {name: torch.cat([left[part].float() for part in parts]) for name, parts in wanted.items()}
    for name in [*(part for parts in wanted.values() for part in parts), *(["lm_head.weight"] if tied else [])]:
        left.pop(name, None)
    if left:
        raise UserError(f"The model has weights {min(left)}, for which topklm has no place: choose another.")
    rows = ours["embed.weight"].shape[0]
    if rows < vocab_size:
        raise UserError(f"The model has {rows:,} embeddings for a tokenizer of {vocab_size:,} tokens: choose another.")
    for name in ("embed.weight", "head.weight"):
        ours[name] = ours[name][:vocab_size]
    return ours
