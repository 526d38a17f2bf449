"""A run's model, taken up outside of training, is the one that the run had at its end."""

import json
import shutil

import pytest
import torch

from topklm.data import Tokenizer
from topklm.errors import UserError
from topklm.model import capture, generate
from topklm.training.load import load_model


def test_it_writes_what_the_run_wrote(train, tmp_path):
    """The run's last samples, by the model and the tokenizer that it left."""
    train("hydra.run.dir=run", "topk.k=4", "topk.sites=[resid_post_mlp,mlp_neurons]", "trainer.precision=32")
    model, tokenizer = load_model(tmp_path / "run")
    assert not model.training
    last = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()][-3:]
    for entry in last:
        ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode([entry["prompt"]])[0]]])
        out = generate(model, ids, 48)[0, ids.shape[1] :]
        assert tokenizer.decode(out.tolist()) == entry["continuation"]
    with torch.no_grad(), capture(model) as seen:
        model(torch.tensor(tokenizer.encode(["The city of"])))
    assert {label: y.shape[-1] for label, y in seen.items()} == {"layer_00": 32, "layer_00_mlp_neurons": 128}
    assert all(((y != 0).sum(-1) == 4).all() for y in seen.values())


def test_it_keeps_the_k_it_was_saved_with(finished, tmp_path):
    run = finished[1]
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (k,) = (name for name in content["state_dict"] if name.endswith(".k"))
    content["state_dict"][k].fill_(7)  # as in the middle of an anneal
    shutil.copytree(run, tmp_path / "run")
    torch.save(content, tmp_path / "run" / "checkpoints" / "early.ckpt")
    assert [site.k_on_host for site in load_model(run)[0].sites] == [4]
    assert [site.k_on_host for site in load_model(tmp_path / "run" / "checkpoints" / "early.ckpt")[0].sites] == [7]


def test_weights_in_bfloat16(train, tmp_path):
    train("hydra.run.dir=run", "topk=none", "trainer.precision=bf16-true", "training.steps=3")
    model, _ = load_model(tmp_path / "run")
    assert not model.sites
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.embed.weight, model.embed.weight.bfloat16().float())


def test_what_cannot_be_loaded(finished, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: give the directory of a run, or one of its"):
        load_model("nowhere")
    with pytest.raises(UserError, match=r"There is no checkpoint .*last\.ckpt"):
        load_model(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    Tokenizer.of_bytes().save(run / "tokenizer.json")
    with pytest.raises(UserError, match=r"last\.ckpt does not fit the tokenizer\.json beside it.*head\.weight"):
        load_model(run)
    (run / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        load_model(run)
