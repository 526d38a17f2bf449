"""The run directory: one owner, never overwritten, continued only as what it is."""

import json
import shlex

import pytest
from omegaconf import OmegaConf

from tests.composing import composed
from topklm.errors import UserError
from topklm.training.provenance import provenance
from topklm.training.rundir import RunDirectory


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.claim(resume=False)
    run.write_config(composed())
    yield run
    run.release()


def test_claim_writes_the_config(run):
    assert OmegaConf.load(run.config).model.d_model == 128


def test_a_second_process_is_refused(run):
    with pytest.raises(UserError, match="in use by another process"):
        RunDirectory(run.path).claim(resume=True)


@pytest.mark.parametrize("status", [None, "running", "finished"])
def test_a_new_run_never_writes_into_an_old_one(run, status):
    run.release()
    if status:
        run.write_summary({"status": status})
    with pytest.raises(UserError, match="already holds a run: continue it with run="):
        RunDirectory(run.path).claim(resume=False)
    assert run.config.exists()


@pytest.mark.parametrize("trace", ["metrics", "checkpoint", "steps", None])
def test_one_that_failed_before_its_first_step_is_none(run, trace):
    run.release()
    run.write_summary({"status": "failed", "steps": 3 if trace == "steps" else 0})
    if trace == "metrics":
        run.metrics.write_text("step,a\n1,2\n")
    if trace == "checkpoint":
        run.checkpoints.mkdir()
    again = RunDirectory(run.path)
    if trace:
        with pytest.raises(UserError, match="already holds a run"):
            again.claim(resume=False)
    else:
        again.claim(resume=False)
        assert not run.config.exists()
        assert again.read_summary() == {}
    again.release()


def test_how_to_continue_can_be_pasted(tmp_path):
    run = RunDirectory(tmp_path / "it's a (run)")
    run.claim(resume=False)
    run.write_config(composed())
    run.release()
    with pytest.raises(UserError) as refusal:
        run.claim(resume=False)
    words = shlex.split(str(refusal.value).partition("continue it with ")[2].partition(", or")[0])
    assert words == [f"run={run.path}"]


def test_only_what_this_process_made_is_discarded(tmp_path):
    own, shared, begun = (RunDirectory(tmp_path / name) for name in ("own", "shared", "begun"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "notes.txt").touch()
    for run in (own, shared, begun):
        run.claim(resume=False)
        run.write_config(composed())
        run.write_summary({"status": "failed", "steps": 1 if run is begun else 0})
        run.discard()
        run.release()
    assert not own.path.exists()
    assert (shared.path / "notes.txt").exists()
    assert begun.config.exists()
    begun.claim(resume=True)
    begun.write_summary({"status": "failed"})
    begun.discard()
    assert begun.config.exists()
    begun.release()


@pytest.mark.parametrize("content", ["", "[1]", "5", '{"status": '])
def test_a_damaged_summary(run, content):
    run.summary.write_text(content)
    with pytest.raises(UserError, match=r"summary.json is damaged: remove it"):
        run.read_summary()


def test_forgetting_what_came_after(run):
    run.metrics.write_text("step,a\n1,1\n2,2\n3,3\n")
    for name in ("histograms.jsonl", "samples.jsonl"):
        (run.path / name).write_text(
            "".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '5\n{}\n{"step": 4, "na'
        )
    run.forget_after(2)
    assert run.metrics.read_text() == "step,a\n1,1\n2,2\n"
    assert (run.path / "samples.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_provenance(tmp_path):
    found = provenance(tmp_path)
    assert found["versions"]["torch"]
    assert found["git_commit"] is None
