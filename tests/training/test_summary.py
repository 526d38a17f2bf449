"""summary.json: a row per site or dense block, and JSON that any parser reads."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from topklm.callbacks import Throughput
from topklm.model import ModelConfig, TopKConfig, TopKTransformer
from topklm.training.summary import Summary, finite, layer_rows


@pytest.fixture
def model():
    torch.manual_seed(0)
    topk = TopKConfig(k=3, sites=["mlp_neurons", "resid_post_mlp"], layers=[0, 2])
    return TopKTransformer(ModelConfig(vocab_size=97, d_model=16, n_layers=3, n_heads=2, seq_len=24, topk=topk))


def test_rows(model):
    model.set_k([5, 3, 3, 3])
    latest = {
        "sparsity/l0/layer_00_mlp_neurons": 4.5,
        "sparsity/dead_fraction/layer_02": 0.25,
        "sparsity/dead_window_tokens": 1000,
        "sparsity/energy_kept/layer_02": 0.9,
    }
    rows = layer_rows(model, latest)
    assert [(row["layer"], row["site"], row["topk"], row["k"]) for row in rows] == [
        (0, "mlp_neurons", True, 5),
        (0, "resid_post_mlp", True, 3),
        (1, "resid_post_mlp", False, None),
        (2, "mlp_neurons", True, 3),
        (2, "resid_post_mlp", True, 3),
    ]
    assert (rows[0]["l0"], rows[0]["dead_fraction"], rows[0]["dead_window_tokens"]) == (4.5, None, 1000)
    assert (rows[4]["dead_fraction"], rows[4]["energy_kept"], rows[4]["l0"]) == (0.25, 0.9, None)
    assert set(rows[2]) == set(rows[0])


def test_json_has_no_nan():
    given = {"a": math.nan, "b": [1, math.inf, {"c": -math.inf, "d": "nan"}], "e": None, "f": 2.5, "g": True}
    assert finite(given) == {"a": None, "b": [1, None, {"c": None, "d": "nan"}], "e": None, "f": 2.5, "g": True}


def test_a_diverged_run_still_has_a_readable_summary(model):
    written = {}
    latest = dict.fromkeys(("train/loss", "val/loss", "val/bpb", "sparsity/energy_kept/layer_00"), math.nan)
    module = SimpleNamespace(
        model=model, latest=latest, global_step=5, tokens_per_step=100, final_k=[3] * 4, device=torch.device("cpu")
    )
    speed = Throughput()
    speed.total_seconds, speed.total_tokens = 4.0, 200
    summary = Summary(SimpleNamespace(write_summary=written.update), {"seed": 1})
    summary.update(SimpleNamespace(callbacks=[speed]), module)
    summary.end("failed", "The loss became nan")
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert (written["status"], written["tokens"], written["tokens_per_second"]) == ("failed", 500, 50)
    assert (written["train_loss"], written["val_loss"], written["layers"][1]["energy_kept"]) == (None, None, None)
    assert written["params"] == sum(p.numel() for p in model.parameters())
