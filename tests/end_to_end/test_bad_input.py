"""What a user gets wrong: one sentence, exit code 1, nothing lost."""

import json
import shutil
import time

import pytest
import torch

from tests.end_to_end.conftest import summary


def refused(process) -> str:
    """Asserts the manner of the refusal, one line on stderr and nothing else, and returns it."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stdout
    assert process.stderr.startswith("Error: "), process.stderr
    assert process.stderr.endswith("\n")
    assert process.stderr.count("\n") == 1, process.stderr
    return process.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("topk.kk=3", "there is no setting topk.kk: did you mean topk.k?"),
        ("modle=small", "there is no setting modle: did you mean model?"),
        ("model=huge", "there is no model=huge: choose from large, medium, nano, small, tiny."),
        ("topk.k=many", "topk.k=many: "),
        ("topk.k=0", "topk.k=0: TopK keeps at least 1 entry"),
        ("topk.k=1000", "topk.k=1000 is larger than the 32 neurons"),
        ("model.n_heads=5", "model.d_model=32 is not divisible by model.n_heads=5"),
        ("trainer=gpu", "trainer.accelerator=gpu, but PyTorch finds no such device here"),
        ("data.languages=[en,xx]", "data.languages=['en', 'xx']: give each of en, es, fr"),
        ("+data.source.depth=3", "depth"),
        ("callbacks.checkpoints.every_n_steps=0", "callbacks.checkpoints.every_n_steps=0: give a whole number"),
        ("callbacks.revive.enabled=true callbacks.sparsity.enabled=false", "callbacks.revive.enabled=true looks for"),
        ("tokenizer=file", "tokenizer=file needs tokenizer.path="),
        ("tokenizer.path=t.json", "tokenizer.path=t.json is used by tokenizer=file, not by bpe"),
        ("topk=null", "there is no topk=null: choose from default, none."),
        ("~callbacks", "callbacks"),
        ("~optimizer", "optimizer"),
        ("data.source=null", "data."),
        ("data.source._target_=foo.bar", "Error locating target 'foo.bar'.\n"),
        ("seed=4294967296", "seed=4294967296: "),
        ("hparams_search=k_width", "hparams_search=k_width describes a sweep of several runs: add -m"),
        ("trainer.strategy=foo", "You selected an invalid strategy name"),
        ("data.cache_dir=/dev/null/x", "Not a directory. Put that right, or choose another place with data.cache_dir="),
        ("run=nowhere", "run=nowhere: there is no run in nowhere (no config.yaml)"),
    ],
)
def test_mistyped_and_impossible(train, tmp_path, override, message):
    if override == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    process = train(*override.split(" "), "hydra.run.dir=out", check=False)
    assert message in refused(process)
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "out").exists()


def test_windows_longer_than_the_data(train):
    process = train("model.seq_len=2000000", "training.batch_tokens=2000000", check=False)
    assert "model.seq_len=2000000 is longer than the training data" in refused(process)


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that still has steps to go, and its last checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    (folder / "summary.json").write_text(json.dumps(summary(folder) | {"status": "running"}))
    shutil.copy(folder / "checkpoints" / "step_0000005.ckpt", folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_run_of_another_config(train, stopped):
    process = train("run=run", "topk.k=2", check=False)
    assert "topk.k=2 contradicts the run in run" in refused(process)
    process = train("hydra.run.dir=run", check=False)
    assert "run already holds a run: continue it with run=" in refused(process)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.run.dir=other"], "hydra.run.dir=other is for a new run, and run=run continues one"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true is bf16-true on this device: continue in the"),
        (["trainer.deterministic=true"], "trainer.deterministic=true contradicts the run in run"),
        (["trainer=cpu", "trainer.strategy=foo"], "You selected an invalid strategy name"),
        (["logger=null"], "there is no logger=null: choose from"),
    ],
)
def test_a_mistake_in_continuing_changes_nothing(train, stopped, tmp_path, overrides, message):
    before = summary(stopped), (stopped / "config.yaml").read_bytes()
    assert message in refused(train("run=run", *overrides, check=False))
    assert before == (summary(stopped), (stopped / "config.yaml").read_bytes())
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "x", "config.yaml is not the config of a run"),
        ("config.yaml", "seed: 1\nmodel: {}\n", "config.yaml is not the config of a run"),
        ("summary.json", "[1]", "summary.json is damaged: remove it"),
        ("metrics.csv", "x,y\n1,2\n", "metrics.csv is damaged"),
        ("samples.jsonl", "5\n{}\n", None),
    ],
)
def test_damaged_files_of_a_run(train, stopped, file, content, message):
    (stopped / file).write_text(content)
    if message:
        assert message in refused(train("run=run", check=False))
    else:
        train("run=run")


def test_a_second_try_at_the_same_place(train, tmp_path):
    """A mistake leaves nothing of a directory of its own, and no run in one that holds other things."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "notes.txt").touch()
    for name in ("own", "shared"):
        refused(train(f"hydra.run.dir={name}", "trainer.strategy=foo", check=False))
    assert not (tmp_path / "own").exists()
    assert summary(tmp_path / "shared")["status"] == "failed"
    train("hydra.run.dir=shared", "training.steps=3")
    assert summary(tmp_path / "shared")["status"] == "finished"
    assert (tmp_path / "shared" / "notes.txt").exists()


def test_wandb_that_refuses(train, tmp_path):
    process = train("logger.wandb=true", "hydra.run.dir=out", check=False, env={"WANDB_MODE": "bogus"})
    assert "Error: Weights & Biases: mode=bogus: Input should be" in refused(process)
    assert not (tmp_path / "out").exists()


def test_a_damaged_and_a_foreign_checkpoint(train, stopped):
    last = stopped / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    before = {path.name: path.stat().st_mtime_ns for path in (stopped / "checkpoints").iterdir()}
    last.write_bytes(whole[: len(whole) // 2])
    assert "last.ckpt is damaged or not a topklm checkpoint" in refused(train("run=run", check=False))
    torch.save({"state_dict": {}}, last)
    assert "last.ckpt is a checkpoint of another program" in refused(train("run=run", check=False))
    after = {path.name: path.stat().st_mtime_ns for path in (stopped / "checkpoints").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"last.ckpt"}
    last.write_bytes(whole)
    train("run=run")
    assert summary(stopped)["status"] == "finished"


def test_a_checkpoint_of_a_model_of_another_shape(train, stopped):
    train("hydra.run.dir=other", "model.d_model=64")
    shutil.copy(stopped.parent / "other" / "checkpoints" / "last.ckpt", stopped / "checkpoints" / "last.ckpt")
    assert "last.ckpt does not fit this run: it has model.d_model=64, config.yaml says 32" in refused(
        train("run=run", check=False)
    )


def test_a_store_of_another_tokenizer(train, cache, tmp_path):
    own = tmp_path / "cache"
    shutil.copytree(cache, own, dirs_exist_ok=True)
    train("hydra.run.dir=first", env={"TOPKLM_CACHE": str(own)})
    manifest = next(own.glob("embedded-en-bpe4096-*/train/manifest.json"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"tokenizer": "0123456789abcdef"}))
    process = train(env={"TOPKLM_CACHE": str(own)}, check=False)
    assert "was written with tokenizer 0123456789abcdef" in refused(process)


def test_other_data_under_a_run_that_continues(train, stopped):
    config = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(config.replace("val_fraction: 0.05", "val_fraction: 0.06"))
    assert "The checkpoint was trained with data" in refused(train("run=run", check=False))


def test_an_exploding_run_stops_before_it_spoils_its_checkpoints(train, tmp_path):
    process = train(
        "hydra.run.dir=run",
        "optimizer.lr=1e30",
        "training.log_every=1",
        "callbacks.checkpoints.every_n_steps=1",
        check=False,
    )
    assert "Lower optimizer.lr" in refused(process)
    assert summary(tmp_path / "run")["status"] == "failed"
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_full_disk(train, tmp_path):
    """A checkpoint folder that cannot grow: the run ends with a sentence and keeps what it has."""
    process = train("hydra.run.dir=run", "training.steps=10000", "callbacks.checkpoints.every_n_steps=3", wait=False)
    deadline = 600
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() and process.poll() is None and deadline:
        deadline -= 1
        time.sleep(0.1)
    folder = tmp_path / "run" / "checkpoints"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    folder.rename(tmp_path / "run" / "elsewhere")
    folder.write_text("a file where a folder should be: every write below it fails, also for root")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert "Cannot write" in stderr
    assert "The checkpoints before it are untouched" in stderr
    assert "Traceback" not in stderr
    folder.unlink()
    (tmp_path / "run" / "elsewhere").rename(folder)
    torch.load(folder / "last.ckpt", weights_only=True)


def test_several_devices_in_a_sweep(train, tmp_path):
    process = train("-m", "trainer.devices=2", "seed=1,2", "hydra.sweep.dir=sweep", check=False)
    assert "A sweep cannot use several devices per job" in refused(process)
    assert "Use trainer.devices=1 with -m" in process.stderr


def test_run_with_a_sweep(train, stopped):
    assert "does not go with -m" in refused(train("-m", "run=run", "seed=1,2", check=False))
