"""One command, a finished run directory: what is in it, and that it says the truth."""

import json
import math
import re

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.end_to_end.conftest import summary
from topklm.data import Tokenizer, TokenStore
from topklm.model import TopKTransformer
from topklm.training.config import RunConfig
from topklm.training.metrics_file import read_metrics


def test_a_run_leaves_what_tools_rely_on(finished, cache):
    _, folder = finished
    found = summary(folder)
    assert found["status"] == "finished"
    assert (found["seed"], found["steps"], found["tokens"], found["k_final"]) == (1, 12, 12 * 512, [4])
    assert found["mfu"] is None
    assert found["energy_kwh"] is None
    assert found["tokens_per_second"] > 0
    for key in ("params", "val_loss", "val_loss_final_k", "val_bpb", "versions", "git_commit", "command", "wandb_id"):
        assert found[key] is not None, key
    sparse, dense = found["layers"]
    assert (sparse["k"], sparse["l0"], sparse["topk"], sparse["site"]) == (4, 4.0, True, "resid_post_mlp")
    assert 0 < sparse["energy_kept"] < 1
    assert (sparse["dead_window_tokens"], dense["topk"], dense["k"]) == (614, False, None)
    kept = [f"step_{step:07}.ckpt" for step in (2, 5, 7, 10, 12)]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last.ckpt", *kept]
    for name in ("overlap_tokens", "effective_rank", "grad_norm"):
        assert sparse[name] > 0, name
    assert dense["grad_norm"] > 0
    for name in ("sparsity", "layers", "firing_rates"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 10_000
    prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert prompts == 2 * ["The city of", "In 1905, the physicist", "The animal"]


def test_the_metrics_have_their_names_and_meet_the_schedule(finished):
    _, folder = finished
    series = read_metrics(folder / "metrics.csv")
    expected = {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens",
        "val/loss",
        "val/loss_final_k",
        "val/bpb",
        "k/layer_00",
    }
    expected |= {f"sparsity/{name}/layer_00" for name in ("l0", "energy_kept", "threshold", "dead_fraction")}
    expected |= {f"sparsity/{name}/layer_00" for name in ("overlap_tokens", "tokens_since_fired_median")}
    expected |= {f"neurons/{name}/layer_00" for name in ("effective_rank", "topic_information_top")}
    expected |= {f"train/grad_norm/{name}" for name in ("layer_00", "layer_01", "embedding")}
    expected |= {"sparsity/dead_window_tokens", "throughput/tokens_per_second", "throughput/data_wait_percent"}
    assert expected <= set(series)
    steps, ks = series["k/layer_00"]
    assert steps.tolist() == [2, 4, 6, 8, 10, 12]
    equal_ratios = [round(32 * (4 / 32) ** min(1.0, step / 12 / 0.5)) for step in steps]
    assert ks.tolist() == equal_ratios
    assert series["sparsity/l0/layer_00"][1][-1] == 4
    val_steps, val = series["val/loss"]
    assert val_steps.tolist() == [6, 12]
    assert val[-1] == pytest.approx(series["val/loss_final_k"][1][-1])
    assert series["train/tokens"][1].tolist() == [512 * step for step in steps]


def test_the_report_says_what_the_files_say(finished):
    process, folder = finished
    found = summary(folder)
    text = process.stdout
    assert f"{found['val_loss']:.4f} nats per token = {found['val_bpb']:.4f} bits per byte" in text
    assert f"bits per byte, over {found['val_tokens']:,} tokens" in text
    assert found["val_tokens"] == 2048
    xz = re.search(
        r"xz .* (\d\.\d+) bits per byte on the whole validation text, (\d\.\d+) with the training text", text
    )
    assert 2.5 < float(xz[1]) < 2.8
    assert 1.9 < float(xz[2]) < 2.2
    for word in ("layer", "l0", "dead", "energy kept", "resid_post_mlp", "The city of", "tokens/s", str(folder.name)):
        assert word in text
    assert "Traceback" not in process.stderr


def test_the_validation_loss_can_be_computed_from_the_run_directory_alone(finished, cache):
    """Rebuild model, tokenizer and data from the files, and measure again in plain PyTorch."""
    _, folder = finished
    config = RunConfig.from_hydra(OmegaConf.load(folder / "config.yaml"))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    model = TopKTransformer(config.model_config(tokenizer.vocab_size)).eval()
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    model.load_state_dict({name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()})
    store = TokenStore(next(cache.glob("embedded-en-*/validation")), tokenizer.fingerprint)
    tokens = torch.from_numpy(store.read(0, 2049).astype("int64"))
    nats = text_bytes = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.trainer.precision == "auto"):
        for first in range(0, 2048, 64):
            window = tokens[first : first + 65]
            logits = model(window[None, :-1])[0].float()
            nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            text_bytes += tokenizer.byte_lengths()[window[1:].numpy()].sum()
    found = summary(folder)
    assert nats / 2048 == pytest.approx(found["val_loss"], rel=2e-3)
    assert nats / text_bytes / math.log(2) == pytest.approx(found["val_bpb"], rel=2e-3)


def test_the_same_seed_gives_the_same_run_and_another_another(train, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(f"hydra.run.dir={name}", f"seed={seed}")
    a, b, c = (summary(tmp_path / name)["val_loss"] for name in "abc")
    assert a == b
    assert a != c


def test_the_dense_twin_starts_equal_and_sees_the_same_data(train, tmp_path):
    options = ("training.log_every=1", "k_schedule.hold=0.25")  # k is as wide as the model for three steps
    train("hydra.run.dir=sparse", *options)
    train("hydra.run.dir=dense", *options, "topk=none")
    losses = [read_metrics(tmp_path / name / "metrics.csv")["train/loss"][1] for name in ("sparse", "dense")]
    assert losses[0][:3].tolist() == losses[1][:3].tolist()
    assert (losses[0][4:] != losses[1][4:]).all()
    dense = summary(tmp_path / "dense")
    assert dense["k_final"] == []
    assert not any(row["topk"] for row in dense["layers"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adamw", "k_schedule=cosine", "lr_schedule=cosine"],
        ["optimizer=muon", "k_schedule=exponential", "lr_schedule=wsd", "lr_schedule.warmup=2 steps"],
        [
            "topk.sites=[resid_post_attn,mlp_neurons]",
            "topk.select=magnitude",
            "topk.relu=true",
            "k_schedule=step",
            "logger.plots=true",
        ],
        ["topk.grad=ste", "topk.impl=reference", "k_schedule=constant", "trainer.precision=32", "model.tied=false"],
        [
            "model.n_kv_heads=1",
            "model.qk_norm=false",
            "training.micro_batch_tokens=128",
            "data.num_workers=2",
            "topk.k=[3]",
        ],
        ["trainer=cpu", "trainer.precision=bf16-true", "model.mup_base_width=16", "training.eval_every=5"],
        [
            "logger=tensorboard",
            "logger.plots=true",
            "data.languages=[en,es,fr]",
            "tokenizer.vocab_size=1000",
            "callbacks.sparsity.enabled=false",
        ],
    ],
    ids=["cosines", "muon", "sites", "ste", "small-parts", "bf16", "tensorboard"],
)
def test_choices_run_end_to_end(train, tmp_path, overrides):
    train("hydra.run.dir=run", *overrides)
    found = summary(tmp_path / "run")
    assert found["status"] == "finished"
    assert math.isfinite(found["val_loss"])
    assert (tmp_path / "run" / "plots").exists() == ("logger.plots=true" in overrides)
    if "logger=tensorboard" in overrides:
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        assert "val/loss" in events.Tags()["scalars"]
        assert events.Tags()["images"] == ["plots/sparsity", "plots/layers"]  # firing rates were not counted
    if "training.eval_every=5" in overrides:  # the last validation is of the last step all the same
        assert read_metrics(tmp_path / "run" / "metrics.csv")["val/loss"][0].tolist() == [5, 10, 12]


def test_the_smoke_run_speaks_to_wandb_where_it_is_asked_to(train, tmp_path):
    train("hydra.run.dir=run", "logger=wandb", "logger.plots=true", "training.steps=2", env={"WANDB_MODE": "offline"})
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(list((written / "files" / "media" / "images" / "plots").glob("*.png"))) == 3


def test_weights_that_are_not_finite_reach_no_checkpoint(train, tmp_path):
    """The loss before the first update is fine, the weights after it are not."""
    save = ("training.log_every=1", "callbacks.checkpoints.every_n_steps=1")
    process = train("hydra.run.dir=run", "optimizer=adamw", "optimizer.lr=1e39", *save, check=False)
    assert process.returncode == 1
    (last,) = process.stderr.strip().splitlines()[-1:]
    assert last.startswith("Error: Weights became infinite or NaN at step 1. Lower optimizer.lr=1e+39"), process.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert summary(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.samples.temperature=-1", "callbacks.samples.temperature=-1: give a number of 0 or more."),
        ("callbacks.samples.prompts=Once", "callbacks.samples.prompts=Once: give a list of texts."),
        ("callbacks.non_finite.every_n_steps=0", "callbacks.non_finite.every_n_steps=0: give a whole number"),
        ("+callbacks.samples.length=5", "callbacks.samples: Samples.__init__() got an unexpected keyword"),
        ("+callbacks.sample.temperature=0", "callbacks.sample is not a callback"),
    ],
)
def test_settings_of_callbacks_that_will_not_do(train, tmp_path, cache, override, message):
    process = train("hydra.run.dir=run", override, check=False)
    assert process.returncode == 1
    assert message in process.stderr.strip().splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_a_diverged_run_ends_with_its_figures(train, tmp_path):
    """A loss so large that its exponential is not a float."""
    large = ("optimizer=adamw", "optimizer.lr=10", "topk=none", "model.tied=false", "trainer.precision=32")
    train("hydra.run.dir=run", *large)
    found = summary(tmp_path / "run")
    assert found["status"] == "finished"
    assert found["val_loss"] > 710
    assert math.isinf(read_metrics(tmp_path / "run" / "metrics.csv")["val/perplexity"][1][-1])


def test_compiled_blocks_give_the_same_losses(train, tmp_path):
    plain = ("trainer.precision=32", "optimizer=adamw", "training.log_every=1")  # Muon iterates in bfloat16
    train("hydra.run.dir=eager", *plain)
    train("hydra.run.dir=compiled", *plain, "trainer.compile=true")
    eager, compiled = (summary(tmp_path / name) for name in ("eager", "compiled"))
    assert compiled["val_loss"] == pytest.approx(eager["val_loss"], rel=1e-4)
    assert compiled["layers"][0]["l0"] == eager["layers"][0]["l0"]


def test_without_a_compiler_training_goes_on(train, tmp_path):
    """A PATH with nothing on it: no C compiler for the search, no C++ compiler for torch.compile, no git."""
    env = {"PATH": str(tmp_path), "CC": "", "CXX": "", "XDG_CACHE_HOME": str(tmp_path / "empty")}
    process = train("hydra.run.dir=run", "trainer.compile=true", env=env)
    assert "trainer.compile=true, but no C++ compiler" in process.stdout + process.stderr
    assert "TopK runs by a sort" in process.stdout + process.stderr
    found = summary(tmp_path / "run")
    assert (found["status"], found["topk_impl"], found["git_commit"]) == ("finished", "reference", None)
