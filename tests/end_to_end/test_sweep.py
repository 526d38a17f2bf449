"""Sweeps: one run after another, each in its own directory and its own W&B run, and one failure does not stop the
rest."""

import shlex
import signal
import time

import pytest

from tests.end_to_end.conftest import summary
from tests.offline_wandb import records


def jobs_of(sweep):
    """The summary of each job by the name of its directory."""
    return {path.parent.name: summary(path.parent) for path in sweep.glob("*/summary.json")}


def test_two_by_two(train, command, tmp_path):
    process = train("-m", "topk.k=4,8", "model.d_model=32,64", "hydra.sweep.dir=sweep")
    found = jobs_of(tmp_path / "sweep")
    assert sorted(found) == [f"debug=smoke_model.d_model={width}_topk.k={k}" for width in (32, 64) for k in (4, 8)]
    assert all(s["status"] == "finished" for s in found.values())
    assert [found[name]["k_final"] for name in sorted(found)] == [[4], [8], [4], [8]]
    assert len({s["params"] for s in found.values()}) == 2
    assert len({s["val_loss"] for s in found.values()}) == 4
    assert len({s["wandb_id"] for s in found.values()}) == 4
    report = tmp_path / "sweep" / "report"
    assert {path.name for path in report.iterdir()} >= {"report.html", "report.md", "report.csv", "curves.png"}
    assert "4 runs: 4 finished." in process.stdout
    again = command("scripts/sweep_report.py", "sweep=[sweep,sweep]", "out=elsewhere")
    assert "4 runs: 4 finished." in again.stdout
    assert (tmp_path / "elsewhere" / "report.csv").read_text() == (report / "report.csv").read_text()


def test_a_job_gives_what_the_same_run_alone_gives(train, tmp_path):
    train("-m", "topk.k=2,4", "hydra.sweep.dir=sweep")
    train("topk.k=4", "hydra.run.dir=alone")
    (job,) = (tmp_path / "sweep").glob("*topk.k=4")
    assert summary(job)["val_loss"] == summary(tmp_path / "alone")["val_loss"]


def test_a_failing_job_is_told_and_the_others_finish(train, tmp_path):
    process = train("-m", "topk.k=4,999,8", "hydra.sweep.dir=sweep", check=False)
    assert process.returncode == 1
    reason = "topk.k=999 is larger than the 32 neurons of resid_post_mlp"
    assert f"This job failed: {reason}" in process.stdout
    assert process.stderr.startswith(f"Error: 1 of the sweep's jobs failed. {reason}")
    assert process.stderr.count("\n") == 1
    found = {name.rpartition("=")[2]: job for name, job in jobs_of(tmp_path / "sweep").items()}
    assert [found[k]["status"] for k in ("4", "999", "8")] == ["finished", "failed", "finished"]
    assert found["999"]["reason"].startswith(reason)


FAULTY = """
import lightning as L
import torch

class Faulty(L.Callback):
    def on_train_start(self, trainer, module):
        k = module.model.sites[0].k_final
        if k == 4:
            raise RuntimeError("a fault\\nin the code")
        if k == 6:
            torch.empty(1 << 50)
"""


def test_a_job_that_crashes_loses_neither_the_others_nor_the_report(train, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    watch = "+callbacks.faulty._target_=faulty.Faulty"
    env = {"PYTHONPATH": str(tmp_path)}
    process = train("-m", "topk.k=4,6,8", "hydra.sweep.dir=sweep", watch, env=env, check=False)
    assert (process.returncode, process.stderr) == (
        1,
        "Error: 2 of the sweep's jobs failed. RuntimeError: a fault in the code\n",
    )
    assert "Traceback" in process.stdout  # a fault is told in full
    assert "This job failed: There is not enough memory ([enforce fail" in process.stdout
    found = {name.rpartition("=")[2]: job["status"] for name, job in jobs_of(tmp_path / "sweep").items()}
    assert found == {"4": "failed", "6": "failed", "8": "finished"}
    assert "a fault" in (tmp_path / "sweep" / "report" / "report.md").read_text()


def test_a_job_that_failed_before_its_first_step_may_be_tried_again(train, tmp_path):
    jobs = ("-m", "seed=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}", "training.steps=3")
    process = train(*jobs, "trainer.strategy=foo", check=False)
    assert "2 of the sweep's jobs failed" in process.stderr
    assert {summary(tmp_path / "sweep" / number)["status"] for number in "01"} == {"failed"}
    train(*jobs)
    assert {summary(tmp_path / "sweep" / number)["status"] for number in "01"} == {"finished"}


def test_ctrl_c_ends_the_whole_sweep_and_the_same_command_goes_on_with_it(train, tmp_path):
    sweep = ("-m", "topk.k=4,8", "training.steps=120", "training.eval_every=120")
    process = train(*sweep, "hydra.sweep.dir=sweep", wait=False)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "sweep").glob("*k=4*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    ((name, job),) = jobs_of(tmp_path / "sweep").items()
    assert job["status"] == "interrupted"
    assert "Go on with the sweep by the same command and hydra.sweep.dir=sweep" in stderr
    (argument,) = shlex.split(stderr.strip().partition("this job alone by ")[2])
    process = train(argument, "topk.k=8", check=False)  # its name, full of =, is understood
    assert f"topk.k=8 contradicts the run in sweep/{name}" in process.stderr
    process = train(*sweep, "hydra.sweep.dir=sweep")
    assert f"continuing at step {job['steps']} of 120" in process.stdout
    assert {job["status"] for job in jobs_of(tmp_path / "sweep").values()} == {"finished"}


def test_a_sweep_that_is_run_again_skips_what_is_finished_and_takes_new_values(train, tmp_path):
    train("-m", "topk.k=4", "seed=1,2", "hydra.sweep.dir=sweep")
    before = {name: job["wandb_id"] for name, job in jobs_of(tmp_path / "sweep").items()}
    process = train("-m", "topk.k=2,4", "seed=1,2", "hydra.sweep.dir=sweep", "hydra.callbacks.report.enabled=false")
    after = jobs_of(tmp_path / "sweep")
    assert process.stdout.count(": skipped.") == len(before) == 2
    assert before.items() <= {name: job["wandb_id"] for name, job in after.items()}.items()
    assert sorted(job["k_final"] for job in after.values()) == [[2], [2], [4], [4]]


def test_dense_twins_of_a_sweep_over_k_run_once(train, tmp_path):
    process = train("-m", "topk=default,none", "topk.k=4,8", "hydra.sweep.dir=sweep")
    assert process.stdout.count(": skipped.") == 1
    assert sorted(map(str, (job["k_final"] for job in jobs_of(tmp_path / "sweep").values()))) == ["[4]", "[8]", "[]"]


def test_a_job_is_never_written_over_one_with_other_settings(train, tmp_path):
    place = ("hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed}", "training.steps=3")
    train("-m", "seed=1,2", *place)
    before = jobs_of(tmp_path / "sweep")
    process = train("-m", "seed=1,2", "topk.k=5", *place, check=False)
    assert "sweep/1 already holds a run, with topk.k=None and not 5: continue it with run=sweep/1" in process.stderr
    assert "2 of the sweep's jobs failed" in process.stderr
    assert jobs_of(tmp_path / "sweep") == before


def test_wandb_offline_holds_the_curves_and_each_job_is_a_run(train, tmp_path):
    train("-m", "topk.k=4,8", "logger.wandb=auto", "hydra.sweep.dir=sweep", env={"WANDB_MODE": "offline"})
    jobs = [tmp_path / "sweep" / name for name in sorted(jobs_of(tmp_path / "sweep"))]
    ids = []
    for job, k in zip(jobs, (4, 8), strict=True):
        (folder,) = (job / "wandb").glob("offline-run-*")
        found = records(folder)
        rows = [record["history"]["item"] for record in found if record["type"] == "history"]
        for name in (
            "train/loss",
            "val/loss",
            "k/layer_00",
            "sparsity/l0/layer_00",
            "sparsity/dead_fraction/layer_00",
            "sparsity/energy_kept/layer_00",
        ):
            assert any(name in row for row in rows), name
        assert [row["k/layer_00"] for row in rows if "k/layer_00" in row][-1] == k
        ids.append(summary(job)["wandb_id"])
        assert folder.name.endswith(ids[-1])
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("sweep_report", ["sweep=nowhere"], "sweep=nowhere is no folder"),
        ("sweep_report", [], "sweep is missing: give sweep=VALUE"),
        ("data_card", ["data=files", "data.paths=nothing"], "data.paths: no file matches nothing"),
        ("benchmark", ["what=nope"], "what=nope"),
        ("study", [], "study=NAME is missing: choose from dead_neurons, recipe."),
        ("study", ["study=recipe", "seeds=x"], "seeds=x"),
    ],
)
def test_a_slip_leaves_nothing_behind(command, tmp_path, script, arguments, sentence):
    process = command(f"scripts/{script}.py", *arguments, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith(f"Error: {sentence}")
    assert list(tmp_path.iterdir()) == []
