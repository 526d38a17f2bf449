"""The transformer as a whole: causality, sparsity where it should be, and equality with an independent
implementation."""

import pytest
import torch
import torch.nn.functional as F

from topklm.model import TopKTransformer


@pytest.mark.parametrize("topk", [{}, {"sites": ()}, {"sites": ("resid_post_attn", "mlp_neurons", "resid_post_mlp")}])
@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2, "qk_norm": False, "tied": True}])
def test_later_tokens_do_not_reach_earlier_ones(build, ids, topk, changes):
    model = build(topk, **changes)
    other = ids.clone()
    other[:, 10:] = (other[:, 10:] + 5) % 97
    torch.testing.assert_close(model(ids)[:, :10], model(other)[:, :10], rtol=0, atol=0)
    assert not torch.allclose(model(ids)[:, 10:], model(other)[:, 10:])


def test_sites_keep_exactly_k(build, ids):
    model = build({"sites": ("resid_post_attn", "mlp_neurons", "resid_post_mlp"), "k": 5})
    counts = {}
    for site in model.sites:
        site.register_forward_hook(lambda site, _, y: counts.update({site.label: (y != 0).sum(-1)}))
    model(ids)
    names = [
        "layer_00_resid_post_attn",
        "layer_00_mlp_neurons",
        "layer_00",
        "layer_01_resid_post_attn",
        "layer_01_mlp_neurons",
        "layer_01",
    ]
    assert list(counts) == names == [site.label for site in model.sites]
    assert all((count == 5).all() for count in counts.values())


def test_the_dense_twin_has_the_same_parameters(build, ids):
    sparse, dense = build(), build({"sites": ()})
    assert not dense.sites
    twins = dict(dense.named_parameters())
    assert all(torch.equal(parameter, twins[name]) for name, parameter in sparse.named_parameters())
    sparse.set_k([32, 32])
    torch.testing.assert_close(sparse(ids), dense(ids), rtol=0, atol=0)


def test_k_can_be_put_in_force_for_a_while(build):
    model = build()
    assert [int(site.k) for site in model.sites] == [4, 4]
    with pytest.raises(RuntimeError, match="inside"), model.using_k([9, 2]):
        assert [int(site.k) for site in model.sites] == [9, 2]
        raise RuntimeError("inside")
    assert [int(site.k) for site in model.sites] == [4, 4]
    with pytest.raises(ValueError, match="at least 1"):
        model.set_k([0, 1])


def test_k_travels_with_the_state_dict(build):
    model, other = build(), build()
    model.set_k([7, 8])
    other.load_state_dict(model.state_dict())
    assert [int(site.k) for site in other.sites] == [7, 8]


def test_loss_is_the_cross_entropy_of_the_logits(build, ids):
    model = build()
    targets = ids.roll(-1, 1)
    targets[:, -1] = -1
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(model.loss(ids, targets), expected)


def test_token_losses_are_the_terms_of_the_loss(build, ids):
    model = build(mup_base_width=16)
    targets = ids.roll(-1, 1)
    targets[:, -1] = -1
    nats = model.token_losses(ids, targets)
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    torch.testing.assert_close(nats, expected.view(2, 24).detach())
    assert not nats.requires_grad
    torch.testing.assert_close(nats.sum() / (2 * 23), model.loss(ids, targets).detach())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.token_losses(ids, targets)
    assert rough.dtype == torch.float32
    assert (rough[:, -1] == 0).all()


def test_too_long_an_input_is_refused(build):
    with pytest.raises(ValueError, match="25 positions exceed model.seq_len=24"):
        build()(torch.zeros(1, 25, dtype=torch.long))


def test_equals_the_llama_of_transformers(build, ids):
    transformers = pytest.importorskip("transformers")
    model = build({"sites": ()}, n_kv_heads=2, qk_norm=False)
    c = model.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            max_position_embeddings=c.seq_len,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=False,
        )
    )
    llama.load_state_dict(_llama_names(model))
    torch.testing.assert_close(model(ids), llama(ids).logits, rtol=1e-4, atol=1e-5)


def _llama_names(model: TopKTransformer) -> dict[str, torch.Tensor]:
    c = model.config
    state = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm_out.gain,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv.weight.split(
            [c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim]
        )
        gate, up = block.mlp.gate_up.weight.chunk(2)
        state |= {
            f"model.layers.{i}.input_layernorm.weight": block.norm_attn.gain,
            f"model.layers.{i}.post_attention_layernorm.weight": block.norm_mlp.gain,
            f"model.layers.{i}.self_attn.q_proj.weight": q,
            f"model.layers.{i}.self_attn.k_proj.weight": k,
            f"model.layers.{i}.self_attn.v_proj.weight": v,
            f"model.layers.{i}.self_attn.o_proj.weight": block.attn.out.weight,
            f"model.layers.{i}.mlp.gate_proj.weight": gate,
            f"model.layers.{i}.mlp.up_proj.weight": up,
            f"model.layers.{i}.mlp.down_proj.weight": block.mlp.down.weight,
        }
    return state
