"""A trained dense model becomes a TopK model: from the command line, in a sweep, and over a kill."""

import hashlib
import json
import shutil
import signal

import pytest
import torch
from omegaconf import OmegaConf

from tests.end_to_end.conftest import launch_train, summary
from tests.end_to_end.test_resume import assert_same, stop_after
from topklm.training.metrics_file import read_metrics

EXACT = ("trainer.precision=32", "trainer.accelerator=cpu", "optimizer=adamw", "training.log_every=1")

OTHER = ("tokenizer=bytes", "data=files", "data.paths=[texts.jsonl]", "data.stream=false")


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory, cache):
    """A dense model after 10 steps, not to be changed."""
    folder = tmp_path_factory.mktemp("dense")
    launch_train(folder, cache, "hydra.run.dir=dense", "topk=none", "training.steps=10", *EXACT)
    return folder / "dense"


@pytest.fixture
def dense(dense_run, tmp_path):
    shutil.copytree(dense_run, tmp_path / "dense")
    return tmp_path / "dense"


def test_it_begins_as_the_dense_model_and_ends_sparse(train, tmp_path, dense):
    process = train("hydra.run.dir=sparse", "init_from=dense", "topk.k=4", *EXACT)
    before, found = summary(dense), summary(tmp_path / "sparse")
    assert found["init_from"] == {
        "checkpoint": "dense/checkpoints/last.ckpt",
        "sha256": hashlib.sha256((dense / "checkpoints" / "last.ckpt").read_bytes()).hexdigest(),
        "step": 10,
    }
    series = read_metrics(tmp_path / "sparse" / "metrics.csv")
    steps, losses = series["val/loss"]
    assert steps.tolist() == [0, 6, 12]
    assert losses[0] == pytest.approx(before["val_loss"], abs=1e-6)
    assert found["val_loss_at_start"] == pytest.approx(losses[0], abs=1e-6)
    assert series["val/loss_final_k"][1][0] != losses[0]
    assert series["k/layer_00"][1][-1] == 4
    assert found["layers"][0]["l0"] == 4
    assert series["train/loss"][0].tolist() == list(range(1, 13))
    config = OmegaConf.load(tmp_path / "sparse" / "config.yaml")
    assert (config.init_from, config.topk.k, config.tokenizer.name) == ("dense", 4, "file")
    tokenizers = [(tmp_path / name / "tokenizer.json").read_text() for name in ("dense", "sparse")]
    assert tokenizers[0] == tokenizers[1]
    assert f"before training  {losses[0]:.4f} nats per token with the k it began with" in process.stdout
    assert "step 0: validation loss" in process.stdout
    assert not (dense / "samples.jsonl").read_text().startswith('{"step": 0')


def test_the_first_step_at_the_full_k_is_the_dense_models(train, tmp_path, dense):
    """On the first batch of the run, with the weights that the checkpoint names."""
    named = "init_from=dense/checkpoints/step_0000004.ckpt"
    late = ("k_schedule.hold=0.5", "topk.k=4")
    quiet = ("tokenizer=bpe", "training.eval_at_start=false")  # named, and the same: its token store is used again
    train("hydra.run.dir=sparse", named, *late, *EXACT, *quiet)
    train("hydra.run.dir=twin", named, "topk=none", *EXACT, *quiet)
    sparse, twin = (read_metrics(tmp_path / name / "metrics.csv") for name in ("sparse", "twin"))
    assert sparse["k/layer_00"][1][:5].tolist() == [32] * 5
    assert sparse["train/loss"][1][:5].tolist() == twin["train/loss"][1][:5].tolist()
    assert sparse["train/loss"][1][7] != twin["train/loss"][1][7]
    assert sparse["val/loss"][0].tolist() == [6, 12]
    assert summary(tmp_path / "sparse")["val_loss_at_start"] is None
    scratch = read_metrics(dense / "metrics.csv")["train/loss"][1]
    assert twin["train/loss"][1][0] < scratch[0]


def test_killed_it_goes_on_without_its_origin(train, tmp_path, dense):
    length = ("training.steps=40", "training.eval_every=8", "callbacks.checkpoints.every_n_steps=5")
    overrides = ("init_from=dense", "topk.k=4", *length, *EXACT)
    train("hydra.run.dir=straight", *overrides)
    process = train("hydra.run.dir=killed", *overrides, wait=False)
    stop_after(process, tmp_path / "killed", 12, with_signal=signal.SIGKILL)
    shutil.rmtree(dense)
    (tmp_path / "killed").rename(tmp_path / "moved")
    train("run=moved")
    assert_same(tmp_path / "moved", tmp_path / "straight")
    ours, theirs = (summary(tmp_path / name) for name in ("moved", "straight"))
    for name in ("init_from", "val_loss_at_start", "val_loss_final_k_at_start"):
        assert ours[name] == theirs[name]
        assert ours[name] is not None


def test_killed_before_its_first_checkpoint_it_starts_again(train, tmp_path, dense):
    overrides = ("init_from=dense", "training.steps=40", "training.eval_every=8", *EXACT)
    late = ("callbacks.checkpoints.every_n_steps=1000", "callbacks.checkpoints.keep=0")
    train("hydra.run.dir=straight", *overrides, *late)
    stop_after(train("hydra.run.dir=killed", *overrides, *late, wait=False), tmp_path / "killed", 5)
    train("run=killed")
    assert_same(tmp_path / "killed", tmp_path / "straight")


def test_a_sweep_over_k(train, tmp_path, dense):
    sweep = ("-m", "init_from=dense", "topk.k=2,8", "hydra.sweep.dir=sweep", "training.steps=4", *EXACT)
    train(*sweep)
    jobs = [summary(path) for path in sorted((tmp_path / "sweep").iterdir()) if "topk.k=" in path.name]
    assert [job["k_final"] for job in jobs] == [[2], [8]]
    assert jobs[0]["val_loss_at_start"] == jobs[1]["val_loss_at_start"]
    assert jobs[0]["val_loss_final_k_at_start"] != jobs[1]["val_loss_final_k_at_start"]
    # Again, one job as if it had been killed, and the model they began with gone.
    (killed,) = (tmp_path / "sweep").glob("*topk.k=8*")
    (killed / "summary.json").write_text(json.dumps({**summary(killed), "status": "running"}))
    shutil.rmtree(dense)
    process = train(*sweep, "hydra.callbacks.report.enabled=false")
    assert process.stdout.count(": skipped.") == 1
    assert "continuing at step 4 of 4" in process.stdout
    assert summary(killed)["status"] == "finished"
    assert summary(killed)["init_from"] == jobs[1]["init_from"]


def test_two_processes_start_alike(train, tmp_path, dense):
    ddp = ("trainer.devices=2", "trainer.strategy=ddp", "training.steps=4")
    train("hydra.run.dir=two", "init_from=dense", *EXACT, *ddp)
    losses = read_metrics(tmp_path / "two" / "metrics.csv")["val/loss"]
    assert losses[0].tolist() == [0, 4]
    assert losses[1][0] == pytest.approx(summary(dense)["val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init_from=nowhere"], "init_from=nowhere does not exist: give the directory of a run"),
        (["init_from=."], ". is not a run directory: it has no config.yaml."),
        (["init_from=dense", "model.n_heads=4"], "model.n_heads=4 contradicts init_from=dense, whose model.n_heads is"),
        (["init_from=dense", *OTHER], "init_from=dense was trained with another tokenizer (4,096 tokens) than"),
        (["init_from=dense", "run=dense"], "init_from='dense' contradicts the run in dense"),
    ],
)
def test_what_does_not_fit_is_one_sentence(train, tmp_path, dense, overrides, message):
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "text number {i}"}}\n' for i in range(2000)))
    process = train(*overrides, *([] if "run=dense" in overrides else ["hydra.run.dir=out"]), check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("Error: ")
    assert process.stderr.count("\n") == 1
    assert message in process.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_cut_short(train, tmp_path, dense):
    last = dense / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    process = train("init_from=dense", "hydra.run.dir=out", check=False)
    assert "last.ckpt is damaged or not a topklm checkpoint" in process.stderr
    assert not (tmp_path / "out").exists()


def test_validation_at_the_start_of_any_run(train, tmp_path):
    train("hydra.run.dir=run", "training.eval_at_start=true", "topk.k=4", "training.steps=2")
    assert read_metrics(tmp_path / "run" / "metrics.csv")["val/loss"][0].tolist() == [0, 2]
    found = summary(tmp_path / "run")
    assert found["init_from"] is None
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["topklm"]["config"]["init_from"] is None
    assert found["val_loss_at_start"] > 5
