"""A run that stops goes on exactly: by SIGKILL, by Ctrl-C, before its first checkpoint, and on another number of
processes."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from tests.end_to_end.conftest import summary
from topklm.training.loggers import read_metrics

LONG = ("training.steps=60", "training.eval_every=8", "training.log_every=1", "callbacks.checkpoints.every_n_steps=4")
EXACT = ("train/loss", "train/grad_norm", "train/lr", "val/loss", "val/loss_final_k", "k/layer_00")
EXACT += tuple(f"sparsity/{name}/layer_00" for name in ("l0", "energy_kept", "dead_fraction"))


def wait_for_step(process, run, step):
    """Returns when metrics.csv has a row of this step or a later one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.csv").exists():
            lines = (run / "metrics.csv").read_text().splitlines()
            if len(lines) > 1 and int(lines[-1].split(",")[0] or 0) >= step:
                return
        time.sleep(0.005)
    pytest.fail(f"the run never reached step {step}: {process.communicate()}")


def assert_same(one, other):
    """Every loss, every curve, every weight and all optimizer state are equal to the bit."""
    ours, theirs = read_metrics(one / "metrics.csv"), read_metrics(other / "metrics.csv")
    for name in EXACT:
        assert ours[name][0].tolist() == theirs[name][0].tolist(), name
        assert ours[name][1].tolist() == theirs[name][1].tolist(), name
    for name in ("histograms.jsonl", "samples.jsonl"):
        assert (one / name).read_text() == (other / name).read_text()
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(a["optimizer_states"], b["optimizer_states"], rtol=0, atol=0)
    torch.testing.assert_close(a["callbacks"], b["callbacks"], rtol=0, atol=0)


@pytest.mark.parametrize(("optimizer", "threads"), [("adamw", "1"), ("muon", "2")])
def test_killed_at_random_steps_and_continued_it_is_the_same_run(train, tmp_path, monkeypatch, optimizer, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    overrides = (*LONG, f"optimizer={optimizer}")
    train("hydra.run.dir=straight", *overrides)
    rng = random.Random(os.environ.get("PYTEST_SEED", time.time_ns()))
    steps = sorted(rng.sample(range(1, 56), 2))
    print(f"killing at {steps}")  # shown when the test fails
    process = train("hydra.run.dir=killed", *overrides, wait=False)
    for step in steps:
        wait_for_step(process, tmp_path / "killed", step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert summary(tmp_path / "killed")["status"] == "running"
        process = train("run=killed", wait=False) if step != steps[-1] else None
    train("run=killed")
    assert summary(tmp_path / "killed")["status"] == "finished"
    assert_same(tmp_path / "killed", tmp_path / "straight")


def test_interrupted_by_ctrl_c_it_saves_and_says_how_to_go_on(train, tmp_path):
    train("hydra.run.dir=straight", *LONG)
    process = train("hydra.run.dir=stopped", *LONG, "callbacks.checkpoints.every_n_steps=1000", wait=False)
    wait_for_step(process, tmp_path / "stopped", 21)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped by SIGINT after step" in stderr
    assert "run=stopped" in stderr
    assert "Traceback" not in stderr
    stopped = summary(tmp_path / "stopped")
    assert stopped["status"] == "interrupted"
    assert stopped["steps"] >= 21
    train("run=stopped")
    assert_same(tmp_path / "stopped", tmp_path / "straight")


def test_killed_before_the_first_checkpoint_it_starts_again(train, tmp_path):
    train("hydra.run.dir=straight", *LONG)
    process = train(
        "hydra.run.dir=killed",
        *LONG,
        "callbacks.checkpoints.every_n_steps=1000",
        "callbacks.checkpoints.keep=0",
        wait=False,
    )
    wait_for_step(process, tmp_path / "killed", 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train("run=killed")
    assert_same(tmp_path / "killed", tmp_path / "straight")


def test_resume_is_another_word_for_run_and_a_finished_run_stays(train, tmp_path):
    train("hydra.run.dir=done")
    before = (tmp_path / "done" / "summary.json").read_text()
    process = train("resume=done")
    assert "is finished" in process.stdout + process.stderr
    assert (tmp_path / "done" / "summary.json").read_text() == before


def test_workers_may_change(train, tmp_path):
    train("hydra.run.dir=straight", *LONG)
    process = train("hydra.run.dir=killed", *LONG, "data.num_workers=2", wait=False)
    wait_for_step(process, tmp_path / "killed", 30)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train("run=killed", "data.num_workers=0")
    assert_same(tmp_path / "killed", tmp_path / "straight")


def test_two_processes_train_as_one_does_and_may_take_over(train, tmp_path):
    """Two gloo ranks at the same global batch see the same steps; sums in another order leave the last digits
    different."""
    precise = (*LONG, "trainer.precision=32", "trainer.accelerator=cpu")
    train("hydra.run.dir=one", *precise)
    train("hydra.run.dir=two", *precise, "trainer.devices=2", "trainer.strategy=ddp")
    process = train("hydra.run.dir=both", *precise, wait=False)
    wait_for_step(process, tmp_path / "both", 30)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train("run=both", "trainer.devices=2", "trainer.strategy=ddp")
    one = read_metrics(tmp_path / "one" / "metrics.csv")
    for name in ("two", "both"):
        other = read_metrics(tmp_path / name / "metrics.csv")
        for metric in EXACT:
            assert other[metric][0].tolist() == one[metric][0].tolist(), metric
            assert other[metric][1] == pytest.approx(one[metric][1], rel=0.01), metric


def test_a_copy_of_the_directory_continues_too(train, tmp_path):
    process = train("hydra.run.dir=first", *LONG, wait=False)
    wait_for_step(process, tmp_path / "first", 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    train("run=first")
    train("run=moved")
    assert_same(tmp_path / "first", tmp_path / "moved")
    assert json.loads((tmp_path / "moved" / "summary.json").read_text())["status"] == "finished"
