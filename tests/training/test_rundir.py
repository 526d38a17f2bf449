"""The run directory: one owner, never overwritten, continued only as what it is."""

import json

import pytest
from omegaconf import OmegaConf

from tests.composing import composed
from topklm.errors import UserError
from topklm.training.provenance import provenance
from topklm.training.resume import stored_config
from topklm.training.rundir import RunDirectory


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.claim(composed(), resume=False)
    yield run
    run.release()


def test_claim_writes_the_config(run):
    assert OmegaConf.load(run.config).model.d_model == 128


def test_a_second_process_is_refused(run):
    with pytest.raises(UserError, match="in use by another process"):
        RunDirectory(run.path).claim(composed(), resume=True)


def test_a_new_run_never_writes_into_an_old_one(run):
    run.release()
    with pytest.raises(UserError, match="already holds a run: continue it with run="):
        RunDirectory(run.path).claim(composed(), resume=False)


def test_continuing_keeps_the_stored_config(run):
    given = composed("topk.k=16")
    OmegaConf.save(given, run.config)
    assert stored_config(run.path, composed(), []).topk.k == 16
    assert stored_config(run.path, given, ["topk.k=16"]).topk.k == 16
    for override in ("topk.k=32", "model=tiny", "seed=2", "experiment=quickstart", "topk=none"):
        with pytest.raises(UserError, match=f"^{override}.* contradicts the run in"):
            stored_config(run.path, composed(override), [override])


def test_where_it_runs_and_reports_may_change(run):
    overrides = ["trainer.devices=2", "data.num_workers=3", "logger=tensorboard", f"run={run.path}"]
    stored = stored_config(run.path, composed(*overrides), overrides)
    assert (stored.trainer.devices, stored.data.num_workers, stored.logger.tensorboard) == (2, 3, True)


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        stored_config(tmp_path, composed(), [])
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        stored_config(tmp_path, composed(), [])


def test_forgetting_what_came_after(run):
    run.metrics.write_text("step,a\n1,1\n2,2\n3,3\n")
    for name in ("histograms.jsonl", "samples.jsonl"):
        (run.path / name).write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "na')
    run.forget_after(2)
    assert run.metrics.read_text() == "step,a\n1,1\n2,2\n"
    assert (run.path / "samples.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_provenance(tmp_path):
    found = provenance(tmp_path)
    assert found["versions"]["torch"]
    assert found["git_commit"] is None
