"""Sweeps: one run after another, each in its own directory and its own W&B run, and one failure does not stop the
rest."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.end_to_end.conftest import summary


def test_two_by_two(train, tmp_path):
    train("-m", "topk.k=4,8", "model.d_model=32,64", "hydra.sweep.dir=sweep")
    found = {path.name: summary(path) for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    assert sorted(found) == [
        f"{number}_debug=smoke_model.d_model={width}_topk.k={k}"
        for number, (k, width) in enumerate([(4, 32), (4, 64), (8, 32), (8, 64)])
    ]
    assert all(s["status"] == "finished" for s in found.values())
    assert [found[name]["k_final"] for name in sorted(found)] == [[4], [4], [8], [8]]
    assert len({s["params"] for s in found.values()}) == 2
    assert len({s["val_loss"] for s in found.values()}) == 4
    assert len({s["wandb_id"] for s in found.values()}) == 4


def test_a_job_gives_what_the_same_run_alone_gives(train, tmp_path):
    train("-m", "topk.k=2,4", "hydra.sweep.dir=sweep")
    train("topk.k=4", "hydra.run.dir=alone")
    (job,) = (tmp_path / "sweep").glob("1_*")
    assert summary(job)["val_loss"] == summary(tmp_path / "alone")["val_loss"]


def test_a_failing_job_is_told_and_the_others_finish(train, tmp_path):
    process = train("-m", "topk.k=4,999,8", "hydra.sweep.dir=sweep", check=False)
    assert process.returncode == 1
    reason = "topk.k=999 is larger than the 32 neurons of resid_post_mlp"
    assert f"This job failed: {reason}" in process.stdout
    assert process.stderr.startswith(f"Error: 1 of the sweep's jobs failed. {reason}")
    assert process.stderr.count("\n") == 1
    found = {path.name[0]: summary(path) for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    assert [found[number]["status"] for number in "012"] == ["finished", "failed", "finished"]
    assert found["1"]["reason"].startswith(reason)


def test_a_job_that_failed_before_its_first_step_may_be_tried_again(train, tmp_path):
    jobs = ("-m", "seed=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}", "training.steps=3")
    process = train(*jobs, "trainer.strategy=foo", check=False)
    assert "2 of the sweep's jobs failed" in process.stderr
    assert {summary(tmp_path / "sweep" / number)["status"] for number in "01"} == {"failed"}
    train(*jobs)
    assert {summary(tmp_path / "sweep" / number)["status"] for number in "01"} == {"finished"}


def test_ctrl_c_ends_the_whole_sweep(train, tmp_path):
    process = train("-m", "topk.k=4,8", "training.steps=5000", "hydra.sweep.dir=sweep", wait=False)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "sweep").glob("0_*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not list((tmp_path / "sweep").glob("1_*"))
    (job,) = (tmp_path / "sweep").glob("0_*")
    assert summary(job)["status"] == "interrupted"
    (argument,) = shlex.split(stderr.strip().partition("Continue with ")[2])
    process = train(argument, "topk.k=8", check=False)  # its name, full of =, is understood
    assert f"topk.k=8 contradicts the run in sweep/{job.name}" in process.stderr


@pytest.fixture
def records():
    """Reads a W&B run written offline: the history rows and the run's own record."""

    def read(folder):
        output = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "WANDB_MODE": "offline"},
        ).stdout
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    return read


def test_wandb_offline_holds_the_curves_and_each_job_is_a_run(train, tmp_path, records):
    train("-m", "topk.k=4,8", "logger.wandb=auto", "hydra.sweep.dir=sweep", env={"WANDB_MODE": "offline"})
    jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
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
