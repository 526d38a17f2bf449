"""Run directories made up to be compared: real configs, and results as a test wants them."""

import pytest

from tests.composing import composed
from topklm.training.rundir import RunDirectory

SITE = {"topk": True, "site": "resid_post_mlp", "l0": 4.0}


@pytest.fixture
def make(tmp_path):
    """make("sweep/a", ["topk.k=4"], loss=4.0) writes a run directory and returns its path."""

    def run(
        name,
        overrides,
        loss=None,
        dead=(0.0, 0.0, 0.0),
        status="finished",
        reason=None,
        config=True,
        rows="",
        window=1000,
    ):
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir(parents=True)
        cfg = composed(*overrides)
        if config:
            directory.write_config(cfg)
        layers = [
            {**SITE, "layer": i, "dead_fraction": d, "dead_window_tokens": window, "energy_kept": 0.5 + i / 10}
            for i, d in enumerate(dead)
        ]
        results = {"val_loss_final_k": loss, "tokens_per_second": 1000.0, "params": 7}
        results |= {"val_loss": loss and loss - 1, "val_bpb": loss and (loss - 1) / 2}  # with another k
        layers = [] if not cfg.topk.sites else layers
        directory.write_summary({"status": status, "reason": reason, "steps": 600, **results, "layers": layers})
        directory.metrics.write_text("step,val/loss_final_k\n" + rows)
        return directory.path

    return run
