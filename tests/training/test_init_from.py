"""Starting from another run: its model and its tokenizer, this run's everything else."""

import hashlib
import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from tests.composing import composed
from topklm.data import Tokenizer
from topklm.errors import UserError
from topklm.model import TopKTransformer
from topklm.training.config import RunConfig
from topklm.training.init_from import Origin, load_origin, with_origin

SHAPE = ("model.d_model=32", "model.n_layers=2", "model.seq_len=16", "model.n_heads=2", "model.n_kv_heads=1")


def write_run(folder, *overrides):
    """A run directory with weights of seed 0 at step 7; returns the model."""
    tokenizer = Tokenizer.of_bytes()
    cfg = composed(*SHAPE, "training.batch_tokens=64", *overrides)
    config = RunConfig.from_hydra(cfg)
    torch.manual_seed(0)
    model = TopKTransformer(config.model_config(tokenizer.vocab_size))
    (folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    tokenizer.save(folder / "tokenizer.json")
    save(model, config.plain, folder / "checkpoints" / "last.ckpt")
    return model


def save(model, plain, path, step=7):
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    topklm = {"config": plain, "latest": {}, "validated_at": -1}
    torch.save({"state_dict": state, "optimizer_states": [], "global_step": step, "topklm": topklm}, path)


@pytest.fixture
def dense(tmp_path):
    write_run(tmp_path / "dense", "topk=none")
    return tmp_path / "dense"


def started(origin, *overrides):
    return with_origin(composed(f"init_from='{origin}'", *overrides), overrides)


def refusal(origin, *overrides):
    with pytest.raises(UserError) as caught:
        started(origin, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_model_and_the_tokenizer_are_its_own_and_the_rest_is_this_runs(dense):
    cfg = started(dense, "topk.k=4", "k_schedule=cosine", "training.batch_tokens=32")
    assert cfg.model == OmegaConf.load(dense / "config.yaml").model
    assert (cfg.tokenizer.name, cfg.tokenizer.path) == ("file", str(dense / "tokenizer.json"))
    assert (cfg.topk.k, cfg.topk.sites, cfg.k_schedule.shape) == (4, ["resid_post_mlp"], "cosine")
    RunConfig.from_hydra(cfg)


def test_a_run_that_began_needs_its_origin_no_more(dense, tmp_path):
    overrides = (f"init_from='{dense}'", "topk.k=4", "model.seq_len=8")
    cfg = with_origin(composed(*overrides), overrides)
    begun = tmp_path / "begun"
    begun.mkdir()
    OmegaConf.save(cfg, begun / "config.yaml", resolve=True)
    shutil.rmtree(dense)
    assert with_origin(composed(*overrides), overrides, begun) == cfg
    for elsewhere in (None, tmp_path):
        with pytest.raises(UserError, match="^init_from=.*dense does not exist"):
            with_origin(composed(*overrides), overrides, elsewhere)
    with pytest.raises(UserError, match="^init_from=other does not exist"):
        with_origin(composed("init_from=other"), ["init_from=other"], begun)
    with pytest.raises(UserError, match="^model.d_model=64 contradicts init_from="):
        with_origin(composed(*overrides, "model.d_model=64"), [*overrides, "model.d_model=64"], begun)


@pytest.mark.parametrize(
    "override",
    ["model.d_model=64", "model.tied=false", "model.mup_base_width=null", "model.d_ff=64", "model.n_heads=5"],
)
def test_another_model_is_refused(dense, override):
    name = override.partition("=")[0]
    held = {"model.d_ff": None}.get(name, OmegaConf.select(OmegaConf.load(dense / "config.yaml"), name))
    assert (
        refusal(dense, override)
        == f"{override} contradicts init_from={dense}, whose {name} is {held}: leave one of them out."
    )


@pytest.mark.parametrize("override", ["model=tiny", "debug=smoke"])
def test_a_choice_that_means_another_model_is_refused(tmp_path, override):
    write_run(tmp_path / "run", "model.d_model=48")
    wanted = {"model=tiny": 256, "debug=smoke": 32}[override]
    assert refusal(tmp_path / "run", override).startswith(
        f"{override} with model.d_model={wanted} contradicts init_from={tmp_path / 'run'}, whose model.d_model is 48:"
    )


@pytest.mark.parametrize(
    "override", ["model.d_model=32", "model.d_ff=128", "model.n_kv_heads=1", "experiment=dense_twin"]
)
def test_what_says_the_same_is_no_contradiction(dense, override):
    assert started(dense, override).model == OmegaConf.load(dense / "config.yaml").model


def test_the_length_of_a_window_may_change(dense):
    assert started(dense, "model.seq_len=8").model.seq_len == 8
    assert started(dense, "debug=smoke").model.seq_len == 64  # which sets it, and d_model and n_layers as they are
    assert started(dense, "topk.k=2").model.seq_len == 16


def test_a_tokenizer_that_is_named_stays(dense):
    assert started(dense, "tokenizer=bytes").tokenizer.name == "bytes"
    assert started(dense, "tokenizer.vocab_size=300").tokenizer.name == "bpe"


def test_what_is_nothing_to_start_from(tmp_path, dense):
    assert "nowhere does not exist: give the directory of a run" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == f"{tmp_path / 'empty'} is not a run directory: it has no config.yaml."
    assert "is not a run directory" in refusal(dense / "config.yaml")
    (dense / "tokenizer.json").rename(dense / "elsewhere.json")
    assert "has no tokenizer.json" in refusal(dense)
    (dense / "elsewhere.json").rename(dense / "tokenizer.json")
    (dense / "checkpoints" / "last.ckpt").rename(dense / "checkpoints" / "step_0000007.ckpt")
    assert f"init_from={dense} has no checkpoint checkpoints/last.ckpt" in refusal(dense)
    named = dense / "checkpoints" / "step_0000007.ckpt"
    assert Origin.find(str(named)).checkpoint == named
    assert started(named).tokenizer.path == str(dense / "tokenizer.json")


def loaded(origin, *overrides, tokenizer=None):
    config = RunConfig.from_hydra(started(origin, "training.batch_tokens=64", *overrides))
    tokenizer = tokenizer or config.tokenizer.given()
    model = TopKTransformer(config.model_config(tokenizer.vocab_size))
    return model, load_origin(config, model, tokenizer)


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("there", ["topk=none", "topk.sites=[mlp_neurons]"])
def test_dense_at_first_it_is_the_same_function(tmp_path, tied, there):
    """Whatever sites the other run had, and with muP's factors on."""
    theirs = write_run(tmp_path / "run", there, f"model.tied={tied}", "model.mup_base_width=16")
    ours, record = loaded(tmp_path / "run", "topk.k=4", "topk.sites=[resid_post_attn,resid_post_mlp]")
    theirs.set_k([128] * len(theirs.sites))
    ids = torch.randint(0, 257, (2, 16))
    with ours.using_k([32, 32]):
        assert torch.equal(ours(ids), theirs(ids))
    assert not torch.allclose(ours(ids), theirs(ids))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert record == {"checkpoint": str(checkpoint), "sha256": digest, "step": 7}
    assert json.dumps(record)


def test_another_tokenizer_is_refused(dense):
    other = Tokenizer.train(["some text of words"], 270)
    with pytest.raises(UserError, match=r"another tokenizer \(257 tokens\) than tokenizer=file gives here \(\d+"):
        loaded(dense, tokenizer=other)


def test_a_checkpoint_that_is_not_the_runs(tmp_path, dense):
    last = dense / "checkpoints" / "last.ckpt"
    write_run(tmp_path / "other", "model.d_model=64")
    mine = last.read_bytes()
    last.write_bytes((tmp_path / "other" / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(UserError, match=r"last.ckpt is of another model than .*config.yaml: put the run's own"):
        loaded(dense)
    last.write_bytes(mine)
    for name, value, message in (
        ("model.norm_out.gain", torch.ones(5), r"whose norm_out.gain is \(32,\): it holds \(5,\)\."),
        ("model.norm_out.gain", None, r"whose norm_out.gain is \(32,\): it holds nothing\."),
        ("model.blocks.0.attn.bias", torch.ones(5), r"holds model.blocks.0.attn.bias, for which this model has no"),
    ):
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k != name}
        if value is not None:
            checkpoint["state_dict"][name] = value
        torch.save(checkpoint, dense / "checkpoints" / "bad.ckpt")
        with pytest.raises(UserError, match=message):
            loaded(dense / "checkpoints" / "bad.ckpt")
