"""Configs check themselves, and every complaint names the override to change."""

import pytest

from topklm.model import ModelConfig, TopKConfig


def test_defaults_are_filled_in():
    config = ModelConfig(vocab_size=300, d_model=128, n_heads=4)
    assert (config.d_ff, config.n_kv_heads, config.head_dim) == (384, 4, 32)
    assert config.topk.topk_layers(config.n_layers) == (0, 1, 2)
    assert config.topk.final_k(0, 128) == 16


@pytest.mark.parametrize(
    ("topk", "expected"),
    [
        ({"k": 7}, [7, 7, 7]),
        ({"k": [1, 2, 3]}, [1, 2, 3]),
        ({"k_ratio": 0.25}, [32, 32, 32]),
        ({"k_ratio": [0.5, 0.25, 0.001]}, [64, 32, 1]),
        ({"k": 5, "k_ratio": 0.25}, [5, 5, 5]),
    ],
)
def test_one_k_or_one_per_block_or_a_ratio(topk, expected):
    config = TopKConfig(**topk)
    ModelConfig(vocab_size=300, topk=config)
    assert [config.final_k(i, 128) for i in range(3)] == expected


def test_which_blocks():
    assert TopKConfig(n_nontopk=0).topk_layers(4) == (0, 1, 2, 3)
    assert TopKConfig(n_nontopk=2).topk_layers(4) == (0, 1)
    assert TopKConfig(layers=[1, 3]).topk_layers(4) == (1, 3)
    assert TopKConfig(sites=()).topk_layers(4) == ()


def test_sites_are_kept_in_the_order_of_the_data():
    assert TopKConfig(sites=["resid_post_mlp", "resid_post_attn"]).sites == ("resid_post_attn", "resid_post_mlp")


@pytest.mark.parametrize(
    ("model", "topk", "message"),
    [
        ({}, {"layers": [2, 0]}, r"topk.layers=\[2, 0\]: name each block once, in rising order"),
        ({}, {"layers": [0, 0]}, "name each block once"),
        ({"d_model": 100, "n_heads": 3}, {}, "model.d_model=100 is not divisible by model.n_heads=3"),
        ({"d_model": 15, "n_heads": 5}, {}, "odd width 3"),
        ({"n_heads": 4, "n_kv_heads": 3}, {}, "not divisible by model.n_kv_heads=3"),
        ({"n_layers": 0}, {}, "model.n_layers=0"),
        ({"d_ff": 0}, {}, "model.d_ff=0"),
        ({"mup_base_width": 0}, {}, "model.mup_base_width=0"),
        ({}, {"k": 129}, "topk.k=129 is larger than the 128 neurons of resid_post_mlp"),
        ({}, {"k": 0}, "topk.k=0: TopK keeps at least 1"),
        ({}, {"k": [16, 16]}, "topk.k lists 2 values for 3 TopK blocks"),
        ({}, {"k": 2.5}, "topk.k=2.5: give an integer"),
        ({}, {"k_ratio": 1.5}, "topk.k_ratio=1.5"),
        ({}, {"k_ratio": None}, "topk.k and topk.k_ratio are both null"),
        ({}, {"n_nontopk": 4}, "leaves none of the 4 blocks"),
        ({}, {"n_nontopk": -1}, "topk.n_nontopk=-1"),
        ({}, {"layers": [4]}, "topk.layers names block 4"),
        ({}, {"layers": []}, "use topk=none"),
        ({}, {"sites": ["resid"]}, "topk.sites has 'resid'"),
        ({}, {"select": "big"}, "topk.select=big"),
        ({}, {"grad": "none"}, "topk.grad=none"),
        ({}, {"impl": "fast"}, "topk.impl=fast"),
    ],
)
def test_mistakes_are_named(model, topk, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(vocab_size=300, topk=TopKConfig(**topk), **model)


def test_k_as_wide_as_the_site_is_allowed_and_wider_sites_allow_more():
    ModelConfig(vocab_size=300, topk=TopKConfig(k=128))
    ModelConfig(vocab_size=300, topk=TopKConfig(k=384, sites=["mlp_neurons"]))
