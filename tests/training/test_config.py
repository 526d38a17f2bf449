"""A mistake in a config is one sentence that names the override."""

import pytest
from omegaconf import OmegaConf

from tests.composing import checked, composed
from topklm.errors import UserError
from topklm.model import TopKConfig
from topklm.training.config import RunConfig, TrainingConfig, build, parse_count


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["topk.k=abc"], r"topk.k=abc: "),
        (["topk.k=0"], "topk.k=0: TopK keeps at least 1"),
        (["topk.k=500"], "topk.k=500 is larger than the 128 neurons"),
        (["topk.k=[16,16]"], "topk.k lists 2 values for 3 TopK blocks"),
        (["topk.select=biggest"], "topk.select=biggest: choose from value, magnitude"),
        (["model.d_model=wide"], "model.d_model=wide: input should be a valid integer"),
        (["model.d_model=127"], "model.d_model=127 is not divisible by model.n_heads=2"),
        (["+model.depth=3"], "model.depth is not a setting of topklm"),
        (["training.steps=-1"], "training.steps=-1"),
        (["training.steps=many"], "training.steps=many"),
        (["training.tokens=lots"], "training.tokens=lots: give a number of tokens"),
        (["training.batch_tokens=1000"], "training.batch_tokens=1000 is not a multiple of model.seq_len=256"),
        (["training.micro_batch_tokens=100"], "training.micro_batch_tokens=100 is less than one window"),
        (["training.clip_grad_norm=0"], "training.clip_grad_norm=0"),
        (["trainer.devices=3"], "which 3 devices cannot share evenly"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["trainer.precision=16"], "trainer.precision=16: choose from auto"),
        (["optimizer.name=sgd"], "optimizer.name=sgd: choose from adamw, muon"),
        (["optimizer.lr=-1"], "optimizer.lr=-1"),
        (["lr_schedule.warmup=soon"], "lr_schedule.warmup=soon: give a share of training"),
        (["lr_schedule.warmup=5000"], "lr_schedule.warmup=5000 is longer than the run"),
        (["k_schedule.shape=zigzag"], "k_schedule.shape=zigzag: choose from"),
        (["k_schedule.hold=0.7"], "k would never reach its final value"),
        (["k_schedule.start=0"], "k_schedule.start=0"),
        (["data.val_fraction=1.0"], "data.val_fraction=1.0"),
        (["data.num_workers=-1"], "data.num_workers=-1"),
        (["tokenizer.vocab_size=100"], "tokenizer.vocab_size=100"),
        (["tokenizer=file"], "tokenizer.path"),
        (["logger.wandb=maybe"], "logger.wandb=maybe"),
        (["seed=-1"], "seed=-1"),
        (["seed=1.5"], "seed=1.5"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)


def test_tokens_win_over_steps():
    assert checked("training.tokens=1M", "training.batch_tokens=4096").training.steps == 245


def test_counts():
    assert [parse_count(text, "x") for text in ("123", "2k", "1.5M", "1B", 7)] == [123, 2000, 1_500_000, 10**9, 7]


@pytest.mark.parametrize(
    ("share", "micro", "expected"),
    [(16, None, 16), (16, 2048, 8), (12, 2048, 6), (7, 2048, 7), (7, 1024, 1), (16, 10**9, 16)],
)
def test_micro_batches_divide_the_share(share, micro, expected):
    assert TrainingConfig(micro_batch_tokens=micro).micro_windows(256, share, "cpu") == expected


def test_build_keeps_lists_and_numbers():
    config = build(TopKConfig, {"k": [1, 2], "sites": ["mlp_neurons"], "layers": [0, 1]}, "topk")
    assert (config.k, config.sites, config.layers) == ([1, 2], ("mlp_neurons",), (0, 1))


def test_a_broken_interpolation_is_named():
    cfg = composed()
    OmegaConf.update(cfg, "training.steps", "${nowhere}")
    with pytest.raises(UserError, match="nowhere"):
        RunConfig.from_hydra(cfg)
