"""A Llama of transformers becomes ours: the same logits, or a sentence."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from tests.composing import composed
from topklm.data import Tokenizer
from topklm.errors import UserError
from topklm.hub.importing import Pretrained, import_model
from topklm.hub.llama import convert, model_settings
from topklm.model import TopKTransformer
from topklm.training.config import RunConfig
from topklm.training.init_from import load_origin, with_origin

transformers = pytest.importorskip("transformers")
SHAPE = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "initializer_range": 0.3,
}


def llama(**settings):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **settings})).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # gains other than one, so that a forgotten one shows
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        assert name
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
def test_the_logits_are_those_of_transformers(tmp_path, tied, n_kv_heads):
    theirs = llama(tie_word_embeddings=tied, num_key_value_heads=n_kv_heads)
    model, _ = brought_in(tmp_path, theirs)
    ids = torch.randint(0, 257, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(ids).logits
        assert wanted.abs().max() > 1
        assert (model(ids) - wanted).abs().max() < 1e-4


def brought_in(tmp_path, theirs, tokenizer=None):
    """The run directory of ``theirs``, and a dense model that starts from it."""
    tokenizer = tokenizer or Tokenizer.of_bytes()
    out = tmp_path / "run"
    import_model(composed("topk=none"), Pretrained("some/llama", theirs, tokenizer.inner.to_str()), out, Console())
    overrides = [f"init_from={out}", "topk=none"]
    config = RunConfig.from_hydra(with_origin(composed(*overrides), overrides))
    model = TopKTransformer(config.model_config(tokenizer.vocab_size)).eval()
    return model, load_origin(config, model, tokenizer)


def test_it_is_a_run_directory(tmp_path):
    theirs = llama()
    _, record = brought_in(tmp_path, theirs)
    run = tmp_path / "run"
    config = RunConfig.from_hydra(OmegaConf.load(run / "config.yaml"))  # as other tools read it
    assert (config.model["d_model"], config.model["mup_base_width"], config.topk.sites) == (48, None, ())
    assert (config.model["norm_eps"], config.model["rope_theta"], config.model["qk_norm"]) == (3e-5, 5000.0, False)
    found = json.loads((run / "summary.json").read_text())
    assert (found["status"], found["steps"], found["imported_from"]) == ("finished", 0, "some/llama")
    assert found["params"] == sum(parameter.numel() for parameter in theirs.parameters())
    assert record["step"] == 0
    with pytest.raises(UserError, match="already holds a run"):
        brought_in(tmp_path, theirs)


def test_a_padded_vocabulary_is_cut(tmp_path, capsys):
    theirs = llama(vocab_size=320, tie_word_embeddings=False)
    model, _ = brought_in(tmp_path, theirs)
    ids = torch.arange(64)[None]
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits[..., :257]).abs().max() < 1e-4
    assert "left out 63 embeddings that belong to no token" in capsys.readouterr().out


def test_bytes_that_the_tokenizer_lacks_become_tokens(tmp_path, capsys):
    """As with SmolLM2's, which would drop some control characters."""
    content = json.loads(Tokenizer.of_bytes().inner.to_str())
    vocabulary = content["model"]["vocab"]
    gone = ["\u0104", "ñ"]  # how the alphabet spells 0x04 and 0xf1
    content["model"]["vocab"] = {token: i for i, token in enumerate(t for t in vocabulary if t not in gone)}
    theirs = llama(vocab_size=255)
    out = tmp_path / "run"
    pretrained = Pretrained("some/llama", theirs, json.dumps(content))
    import_model(composed("topk=none"), pretrained, out, Console())
    assert "added tokens for 2 bytes that its tokenizer would drop" in capsys.readouterr().out
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(["a\x04b"])[0]) == "a\x04b"
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    embedding = theirs.model.embed_tokens.weight
    assert torch.equal(state["model.embed.weight"][:255], embedding)
    assert torch.allclose(state["model.embed.weight"][255:], embedding.mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "gelu"}, "has the activation gelu, and topklm's MLP has silu"),
        ({"attention_bias": True}, "has biases in its attention"),
        ({"mlp_bias": True}, "has biases in its MLP"),
        ({"head_dim": 16}, r"has heads 16 wide, and topklm divides the width among them \(8\)"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"scales its rotary positions \(linear\)",
        ),
    ],
)
def test_what_the_blocks_cannot_hold(settings, message):
    with pytest.raises(UserError, match=message):
        model_settings(transformers.LlamaConfig(**{**SHAPE, **settings}))


def test_another_architecture():
    with pytest.raises(UserError, match="is a gpt2, and topklm's blocks hold a llama"):
        model_settings(transformers.GPT2Config())


def test_weights_that_do_not_fit():
    state = llama().state_dict()
    with pytest.raises(UserError, match=r"weights model.layers.0.self_attn.q_proj.bias, for which topklm has no place"):
        convert({**state, "model.layers.0.self_attn.q_proj.bias": torch.ones(48)}, 3, True, 257)
    with pytest.raises(UserError, match=r"has no weights model.layers.3.input_layernorm.weight"):
        convert(state, 4, True, 257)
    with pytest.raises(UserError, match="257 embeddings for a tokenizer of 300 tokens"):
        convert(state, 3, True, 300)


def test_a_model_that_computes_something_else_is_found_out(tmp_path):
    theirs = llama()
    theirs.model.layers[1].self_attn.scaling *= 2  # nothing in its config or its weights says so
    with pytest.raises(UserError, match="logits differ by"):
        brought_in(tmp_path, theirs)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="no.gguf does not exist"):
        Pretrained.load(str(tmp_path / "no.gguf"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be loaded \(\w+: .*\)\.$") as caught:
        Pretrained.load(str(tmp_path))
    assert "\n" not in str(caught.value)
