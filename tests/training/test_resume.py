"""Continuing: what may change, what must not, and what is no run to continue."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from tests.composing import checked, composed
from topklm.errors import UserError
from topklm.training.config import RunConfig
from topklm.training.flat import flat
from topklm.training.resume import config_to_go_on, step_to_continue, stored_config
from topklm.training.rundir import RunDirectory


def continued(path, given, overrides):
    return stored_config(path, given, overrides, defaults)


def defaults():
    return flat(composed())


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
    assert continued(run.path, composed(), []).topk.k == 16
    assert continued(run.path, given, ["topk.k=16"]).topk.k == 16


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
        continued(run.path, composed(override), [override])


def test_overlays_that_change_nothing(run):
    assert continued(run.path, composed("experiment=quickstart"), ["experiment=quickstart"]).seed == 1


def test_where_it_runs_and_reports_may_change(run):
    overrides = [
        "trainer.devices=2",
        "trainer.compile=true",
        "trainer.activation_checkpointing=block",
        "data.num_workers=3",
        "data.writers=2",
        "data.cache_dir=there",
        "logger=tensorboard",
        f"run={run.path}",
        "hydra.job.chdir=false",
    ]
    stored = continued(run.path, composed(*overrides), overrides)
    assert (stored.trainer.devices, stored.trainer.compile, stored.logger.tensorboard) == (2, True, True)
    assert stored.trainer.activation_checkpointing == "block"
    assert (stored.data.num_workers, stored.data.writers, stored.data.cache_dir) == (3, 2, "there")
    assert stored.run is None


def test_a_run_of_a_version_without_a_setting_takes_it_where_it_may_change(run):
    stored = composed()
    del stored.logger.dead_alert
    run.write_config(stored)
    assert continued(run.path, composed("logger.dead_alert=0.3"), ["topk.n_nontopk=1"]).logger.dead_alert == 0.3


def of_an_older_version(*overrides):
    """A config as it was written before some settings were there, a whole callback among them."""
    older = composed(*overrides)
    del older.topk.exact_from, older.topk.ste_scale, older.training.eval_at_start, older.data.attend, older.init_from
    del older.logger.dead_alert, older.callbacks.revive, older.callbacks.probe.seed, older.tokenizer.train_bytes
    return older


def test_a_run_of_an_older_version_goes_on_with_the_defaults(run):
    run.write_config(of_an_older_version("topk.k=16", "data=files", "data.paths=[a.txt]"))
    config = RunConfig.from_hydra(continued(run.path, composed(f"run={run.path}"), [f"run={run.path}"]))
    assert (config.topk.k, config.topk.exact_from, config.topk.ste_scale) == (16, 0.9, 0.1)
    assert (config.data.attend, config.eval_at_start, config.plain["data"]["paths"]) == ("window", False, ["a.txt"])
    assert "languages" not in config.plain["data"]  # another source's
    assert "revive" not in config.plain["callbacks"]
    with pytest.raises(UserError, match=r"topk.ste_scale=0.3 contradicts the run in .* \(topk.ste_scale is 0.1\)"):
        continued(run.path, composed("topk.ste_scale=0.3"), ["topk.ste_scale=0.3"])


def test_an_overlay_that_sets_what_an_older_version_did_not_have(run):
    run.write_config(of_an_older_version())
    overlay = ["experiment=quickstart", "callbacks.revive.until=0.8"]
    assert continued(run.path, composed(*overlay), overlay).topk.exact_from == 0.9
    with pytest.raises(UserError, match="callbacks.revive.until=0.5 contradicts"):
        continued(run.path, composed("callbacks.revive.until=0.5"), ["callbacks.revive.until=0.5"])


def test_a_job_that_goes_on_is_the_run_it_was_where_the_command_says(run):
    run.write_config(of_an_older_version("topk=none", "topk.k=4", "tokenizer=file", "tokenizer.path=gone.json"))
    run.tokenizer.touch()
    cfg = config_to_go_on(run.path, composed("topk=none", "topk.k=8", "data.num_workers=3", "logger=csv"), defaults)
    assert (cfg.topk.k, cfg.topk.exact_from, cfg.tokenizer.path) == (4, 0.9, str(run.tokenizer))
    assert (cfg.data.num_workers, cfg.logger.wandb) == (3, False)
    RunConfig.from_hydra(cfg)


def write_checkpoint(run, cfg, **more):
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    topklm = {"config": OmegaConf.to_container(cfg, resolve=True), "latest": {}, "validated_at": -1, **more}
    torch.save({"state_dict": {}, "optimizer_states": [], "global_step": 7, "topklm": topklm}, run.last)


def test_a_checkpoint_of_an_older_version_fits_and_one_of_another_run_does_not(run):
    write_checkpoint(run, of_an_older_version("topk.k=16"))
    assert step_to_continue(run.last, checked("topk.k=16")) == 7
    with pytest.raises(UserError, match=r"does not fit this run: it has topk.k=16, config.yaml says 8\."):
        step_to_continue(run.last, checked("topk.k=8"))


def test_a_trainer_gives_its_place_and_nothing_else(run):
    given = composed("trainer=ddp", "trainer.accelerator=cpu")
    assert given.trainer.precision == "auto"
    stored = continued(run.path, given, ["trainer=ddp", "trainer.accelerator=cpu"])
    assert dict(stored.trainer) == dict(given.trainer) | {"precision": 32}


def test_the_precision_that_auto_meant_is_kept(tmp_path):
    """A checkpoint in bf16-true, which auto never means, so that this holds on any machine."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(composed())
    write_checkpoint(run, composed(), precision="bf16-true")
    with pytest.raises(UserError, match=r"was trained in bf16-true, but .*=auto .*with trainer.precision=bf16-true\.$"):
        step_to_continue(run.last, checked())
    for override, fits in (("trainer.precision=bf16-true", True), ("trainer.precision=32", False)):
        stored = continued(run.path, composed(override), [override])
        config = checked(f"trainer.precision={stored.trainer.precision}")
        if fits:
            assert step_to_continue(run.last, config) == 7
        else:
            with pytest.raises(UserError, match="was trained in bf16-true, but trainer.precision=32 is 32-true"):
                step_to_continue(run.last, config)
    write_checkpoint(run, composed())  # of a version that did not record it
    assert step_to_continue(run.last, checked()) == 7


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        continued(tmp_path, composed(), [])
    for content in ("a: [", "5"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UserError, match="cannot be read"):
            continued(tmp_path, composed(), [])
    for content in ("x", "[1]", "", "seed: 1"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=r"config.yaml is not the config of a run: it has no \w+\."):
            continued(tmp_path, composed(), [])
