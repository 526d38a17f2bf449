"""What the settings of a run come to: its width, its k in numbers and as a share, whether it is a dense twin. The same
for W&B, where runs are grouped by it, and for the report of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..model.config import ModelConfig, TopKConfig


def derived(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a run's config, none of which needs the tokenizer.

    Args:
        plain: the whole config, resolved; settings that this version does not know are passed over.

    Returns:
        ``width``: d_model. ``dense``: whether there is no TopK. ``k``, ``k_over_d``: final k, and its share of the
        site's width; means over the sites where they differ, None for a dense model. ``ks``: final k of every site.
        ``sites``, ``k_shape``, ``k_length``: where, and how k moves.

    Raises:
        ValueError, TypeError, KeyError: it is no valid config.
    """
    model = stored_model(plain, vocab_size=257)  # which has no part in it, but a model must have one
    topk = model.topk
    positions = range(len(topk.topk_layers(model.n_layers)))
    sites = [
        (topk.final_k(i, model.site_width(site)), model.site_width(site)) for i in positions for site in topk.sites
    ]
    ks = [k for k, _ in sites]
    return {
        "width": model.d_model,
        "dense": not sites,
        "k": _mean(ks),
        "k_over_d": _mean([k / width for k, width in sites]),
        "ks": ks,
        "sites": "+".join(topk.sites),
        "k_shape": plain["k_schedule"]["shape"] if sites else None,
        "k_length": plain["k_schedule"]["length"] if sites else None,
    }


def stored_model(plain: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The model of a run's resolved config; settings that this version does not know are passed over."""
    topk = TopKConfig(**_known(TopKConfig, plain["topk"]))
    return ModelConfig(**{**_known(ModelConfig, plain["model"]), "vocab_size": vocab_size, "topk": topk})


def _known(cls: type, node: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in node.items() if name in names}


def _mean(values: Sequence[float]) -> float | None:
    if not values:
        return None
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)
