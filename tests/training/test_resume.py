"""Continuing: what may change, what must not, and what is no run to continue."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from tests.composing import checked, composed
from topklm.errors import UserError
from topklm.training.resume import step_to_continue, stored_config
from topklm.training.rundir import RunDirectory


@pytest.fixture
def run(tmp_path):
    """A run directory with a config in float32."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(composed("trainer.precision=32"))
    return run


def test_continuing_keeps_the_stored_config(run):
    given = composed("topk.k=16")
    run.write_config(given)
    assert stored_config(run.path, composed(), []).topk.k == 16
    assert stored_config(run.path, given, ["topk.k=16"]).topk.k == 16


@pytest.mark.parametrize(
    "override",
    [
        "topk.k=32",
        "model=tiny",
        "seed=2",
        "experiment=dense_twin",
        "topk=none",
        "data.order=sequential",
        "trainer.deterministic=true",
        "trainer.precision=auto",
        "trainer.precision=bf16-true",
        "+callbacks.mine._target_=a.B",
        "~optimizer.eps",
    ],
)
def test_what_would_be_computed_stays(run, override):
    with pytest.raises(UserError, match=f"^{re.escape(override)}.* contradicts the run in"):
        stored_config(run.path, composed(override), [override])


def test_overlays_that_change_nothing(run):
    assert stored_config(run.path, composed("experiment=quickstart"), ["experiment=quickstart"]).seed == 1


def test_where_it_runs_and_reports_may_change(run):
    overrides = [
        "trainer.devices=2",
        "trainer.compile=true",
        "data.num_workers=3",
        "data.writers=2",
        "data.cache_dir=there",
        "logger=tensorboard",
        f"run={run.path}",
        "hydra.job.chdir=false",
    ]
    stored = stored_config(run.path, composed(*overrides), overrides)
    assert (stored.trainer.devices, stored.trainer.compile, stored.logger.tensorboard) == (2, True, True)
    assert (stored.data.num_workers, stored.data.writers, stored.data.cache_dir) == (3, 2, "there")
    assert stored.run is None


def test_a_run_of_a_version_without_a_setting_takes_it_where_it_may_change(run):
    stored = composed()
    del stored.logger.dead_alert
    run.write_config(stored)
    assert stored_config(run.path, composed("logger.dead_alert=0.3"), ["topk.n_nontopk=1"]).logger.dead_alert == 0.3


def test_a_trainer_gives_its_place_and_nothing_else(run):
    given = composed("trainer=ddp", "trainer.accelerator=cpu")
    assert given.trainer.precision == "auto"
    stored = stored_config(run.path, given, ["trainer=ddp", "trainer.accelerator=cpu"])
    assert dict(stored.trainer) == dict(given.trainer) | {"precision": 32}


def test_the_precision_that_auto_meant_is_kept(tmp_path):
    """A checkpoint in bf16-true, which auto never means, so that this holds on any machine."""
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.write_config(composed())
    topklm = {"config": OmegaConf.to_container(composed(), resolve=True), "latest": {}, "validated_at": -1}
    rest = {"state_dict": {}, "optimizer_states": [], "global_step": 7}
    torch.save({**rest, "topklm": topklm | {"precision": "bf16-true"}}, run.last)
    with pytest.raises(UserError, match=r"was trained in bf16-true, but .*=auto .*with trainer.precision=bf16-true\.$"):
        step_to_continue(run.last, checked())
    for override, fits in (("trainer.precision=bf16-true", True), ("trainer.precision=32", False)):
        stored = stored_config(run.path, composed(override), [override])
        config = checked(f"trainer.precision={stored.trainer.precision}")
        if fits:
            assert step_to_continue(run.last, config) == 7
        else:
            with pytest.raises(UserError, match="was trained in bf16-true, but trainer.precision=32 is 32-true"):
                step_to_continue(run.last, config)
    torch.save({**rest, "topklm": topklm}, run.last)  # of a version that did not record it
    assert step_to_continue(run.last, checked()) == 7


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        stored_config(tmp_path, composed(), [])
    for content in ("a: [", "5"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UserError, match="cannot be read"):
            stored_config(tmp_path, composed(), [])
    for content in ("x", "[1]", "", "seed: 1"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=r"config.yaml is not the config of a run: it has no \w+\."):
            stored_config(tmp_path, composed(), [])
