"""A run that ends at an awkward moment, or not by its last step: nothing is lost, and the summary is true."""

import shutil
import signal

import pytest

from tests.end_to_end.conftest import summary
from topklm.reports.compare import compare
from topklm.reports.runs import read_run
from topklm.training.metrics_file import read_metrics
from topklm.training.results import results

AT = """
import os, signal
import lightning as L


class Signal(L.Callback):
    def __init__(self, number, step=0, when="start"):
        self.number, self.step, self.when = number, step, when

    def _send(self, module):
        if module.global_step == self.step and not os.path.exists("sent"):
            open("sent", "w").close()
            os.kill(os.getpid(), self.number)

    def setup(self, trainer, module, stage):
        if self.when == "setup":
            self._send(module)

    def on_train_batch_start(self, trainer, module, batch, index):
        if self.when == "start":
            self._send(module)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if self.when == "in step":
            self._send(module)
"""
SETTINGS = ("training.steps=12", "training.eval_every=4", "callbacks.checkpoints.every_n_steps=4")


@pytest.fixture
def signalled(train, tmp_path):
    """signalled("run", SIGKILL, step=8) trains with a signal that comes once, when so many steps have been taken."""
    (tmp_path / "at.py").write_text(AT)

    def run(name, number, *overrides, step, when="start"):
        (tmp_path / "sent").unlink(missing_ok=True)
        node = f"+callbacks.signal={{_target_: at.Signal, number: {int(number)}, step: {step}, when: '{when}'}}"
        env = {"PYTHONPATH": str(tmp_path)}
        return train(f"hydra.run.dir={name}", *SETTINGS, *overrides, node, env=env, check=False)

    return run


@pytest.fixture
def go_on(train, tmp_path):
    return lambda name, *more, **options: train(f"run={name}", *more, env={"PYTHONPATH": str(tmp_path)}, **options)


def test_a_kill_right_after_a_checkpoint_loses_no_row(signalled, go_on, tmp_path):
    signalled("killed", signal.SIGKILL, "training.eval_at_start=true", step=8)
    before = summary(tmp_path / "killed")
    assert before["status"] == "running"
    assert before["val_loss_at_start"] > 0
    go_on("killed")
    series = read_metrics(tmp_path / "killed" / "metrics.csv")
    assert series["train/loss"][0].tolist() == [2, 4, 6, 8, 10, 12]
    assert series["val/loss"][0].tolist() == [0, 4, 8, 12]
    assert summary(tmp_path / "killed")["val_loss_at_start"] == before["val_loss_at_start"]


@pytest.mark.parametrize("eval_every", [5, 50])
def test_a_signal_in_the_last_step_changes_nothing(signalled, tmp_path, eval_every):
    process = signalled("run", signal.SIGTERM, f"training.eval_every={eval_every}", step=11, when="in step")
    assert (process.returncode, process.stderr) == (0, "")
    assert (tmp_path / "sent").exists()
    found = summary(tmp_path / "run")
    steps, losses = read_metrics(tmp_path / "run" / "metrics.csv")["val/loss"]
    assert (found["status"], steps[-1], found["val_loss"]) == ("finished", 12, pytest.approx(losses[-1]))
    with open(tmp_path / "run" / "metrics.csv") as file:
        steps = [line.split(",")[0] for line in file][1:]
    assert len(steps) == len(set(steps))  # a row a step


def test_a_callback_may_end_it(train, tmp_path):
    stop = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, "
    process = train("hydra.run.dir=run", *SETTINGS, stop + "stopping_threshold: 100}")
    found = summary(tmp_path / "run")
    assert (found["status"], found["steps"]) == ("finished", 4)
    assert found["reason"] == "A callback ended it after step 4 of 12."
    assert results(found)["val_loss"] == found["val_loss_final_k"] != found["val_loss"]
    final_bpb = read_metrics(tmp_path / "run" / "metrics.csv")["val/bpb_final_k"][1][-1]
    assert results(found)["val_bpb"] == pytest.approx(final_bpb, rel=1e-5) != found["val_bpb"]
    assert f"{found['val_loss_final_k']:.4f} nats per token with the final k" in process.stdout
    (early,) = compare([read_run(tmp_path / "run")]).unfinished
    assert (early.ended_early, early.reason) == (True, found["reason"])
    assert "Traceback" not in process.stdout + process.stderr


def test_what_a_run_had_reached_stays_until_it_goes_on(signalled, go_on, tmp_path):
    signalled("run", signal.SIGTERM, step=6)
    before = summary(tmp_path / "run")
    assert (before["status"], before["steps"]) == ("interrupted", 7)
    (tmp_path / "sent").unlink()
    again = tmp_path / "run" / "config.yaml"
    again.write_text(again.read_text().replace("step: 6", "step: 0").replace("when: start", "when: setup"))
    process = go_on("run", check=False)  # a signal before the checkpoint is loaded
    assert process.returncode == 130
    after = summary(tmp_path / "run")
    for name in ("steps", "val_loss", "layers", "tokens"):
        assert after[name] == before[name], name


def test_without_the_last_checkpoint_it_does_not_begin_anew_in_silence(signalled, go_on, tmp_path):
    signalled("run", signal.SIGKILL, "callbacks.checkpoints.keep=3", step=9)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "last.ckpt",
        "step_0000004.ckpt",
        "step_0000008.ckpt",
    ]
    (checkpoints / "last.ckpt").unlink()
    process = go_on("run", check=False)
    assert process.returncode == 1
    assert "last.ckpt is missing, but step_0000008.ckpt is there: make a copy of it with that name" in process.stderr
    shutil.copyfile(checkpoints / "step_0000008.ckpt", checkpoints / "last.ckpt")
    # Where memory is short, it may go on with smaller micro-batches.
    assert "continuing at step 8 of 12" in go_on("run", "training.micro_batch_tokens=128").stdout
    assert summary(tmp_path / "run")["status"] == "finished"
