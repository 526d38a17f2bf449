"""A mistake in a config is one sentence that names the override."""

import pytest
from omegaconf import OmegaConf

from tests.composing import checked, composed
from topklm.errors import UserError
from topklm.model import TopKConfig
from topklm.training.checking import build, parse_count
from topklm.training.config import RunConfig
from topklm.training.sections import TrainingConfig


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["topk.k=abc"], r"topk.k=abc: "),
        (["topk.k=0"], "topk.k=0: TopK keeps at least 1"),
        (["topk.k=500"], "topk.k=500 is larger than the 128 neurons"),
        (["topk.k=[16,16]"], "topk.k lists 2 values for 3 TopK blocks"),
        (["topk.ste_scale=-1"], "topk.ste_scale=-1.0: give a number of 0 or more"),
        (["topk.ste_until=1.5"], "topk.ste_until=1.5: give a share of training from 0 to 1"),
        (["topk.exact_from=-0.1"], "topk.exact_from=-0.1: give a share of training from 0 to 1"),
        (["topk.ste_reach=0.5"], "topk.ste_reach=0.5: it is a multiple of k, so give 1 or more"),
        (["topk.impl=approximate"], "topk.impl=approximate: choose from auto, reference, threshold, triton, "),
        (["k_schedule.length=[0.1,0.2]"], "k_schedule.length lists 2 values for 3 TopK blocks"),
        (["k_schedule.start=[8,8,8,8]"], "k_schedule.start lists 4 values for 3 TopK blocks"),
        (["k_schedule.start=[8,0,8]"], r"k_schedule.start=\[8, 0, 8\]: give 1 or more"),
        (["k_schedule.start=[8,129,null]"], "k_schedule.start=129 is larger than the 128 neurons"),
        (["k_schedule.hold=[0,0.6,0]"], "k_schedule.hold=0.6 and k_schedule.length=0.5 take longer than the run"),
        (["k_schedule.hold=[0,soon,0]"], "k_schedule.hold=soon: give a share of training"),
        (["topk.select=biggest"], "topk.select=biggest: choose from value, magnitude"),
        (["model.d_model=wide"], "model.d_model=wide: input should be a valid integer"),
        (["model.d_model=127"], "model.d_model=127 over model.n_heads=1 gives heads of odd width 127"),
        (["model.d_model=128", "model.n_heads=3"], "model.d_model=128 is not divisible by model.n_heads=3"),
        (["model.mup_base_head_dim=0"], "model.mup_base_head_dim=0: give 1 or more"),
        (["+model.depth=3"], "model.depth is not a setting of topklm"),
        (["+model.vocab_size=12"], "model.vocab_size is not a setting of topklm"),
        (["+model.topk=5"], "model.topk is not a setting of topklm"),
        (["+foo=1"], "foo is not a setting of topklm"),
        (["+what=step"], "what is not a setting of topklm"),
        (["+data.foo=1"], "data.foo is not a setting of topklm"),
        (["+data.paths=[x]"], "data.paths is not a setting of topklm"),
        (["data=files"], r"data.paths is missing: give data.paths=VALUE"),
        (["~seed"], "seed is missing"),
        (["~callbacks"], "callbacks is missing"),
        (["~model.name"], "model.name is missing"),
        (["~data.source"], "data.source is missing"),
        (
            ["data.source=null"],
            "data.source=null: it needs a class that yields documents, such as data.source._target_=",
        ),
        (["data.source=files"], "data.source=files: it needs a class"),
        (["~data.source._target_"], "data.source={'languages': .'en'.}: it needs a class"),
        (["model.rope_theta=0"], "model.rope_theta=0"),
        (["model.rope_theta=nan"], "model.rope_theta=nan"),
        (["model.rope_theta=inf"], "model.rope_theta=inf"),
        (["model.norm_eps=0"], "model.norm_eps=0"),
        (["model.norm_eps=nan"], "model.norm_eps=nan"),
        (["model.mup_base_head_dim=0"], "model.mup_base_head_dim=0"),
        (["topk.k=true"], "topk.k=true: true and false have no meaning"),
        (["topk.layers=[true]"], r"topk.layers=\[true\]: true and false"),
        (["topk.k_ratio=nan"], "topk.k_ratio=nan"),
        (["training.steps=-1"], "training.steps=-1"),
        (["training.steps=many"], "training.steps=many"),
        (["training.tokens=lots"], "training.tokens=lots: give a number of tokens"),
        (["training.batch_tokens=1000"], "training.batch_tokens=1000 is not a multiple of model.seq_len=256"),
        (["training.micro_batch_tokens=100"], "training.micro_batch_tokens=100 is less than one window"),
        (["training.clip_grad_norm=0"], "training.clip_grad_norm=0"),
        (["training.clip_grad_norm=nan"], "training.clip_grad_norm=nan"),
        (["training.clip_grad_norm=inf"], "training.clip_grad_norm=inf: give a finite number"),
        (["training.z_loss=-1e-4"], "training.z_loss=-0.0001: give a finite number of 0 or more"),
        (["training.z_loss=nan"], "training.z_loss=nan"),
        (["training.z_loss=inf"], "training.z_loss=inf: give a finite number of 0 or more"),
        (["training.steps=true"], "training.steps=true"),
        (
            ["trainer.activation_checkpointing=all"],
            "trainer.activation_checkpointing=all: choose from none, selective, block, block_sparse",
        ),
        (["trainer.devices=3"], "which 3 devices cannot share evenly"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["trainer.precision=16"], "trainer.precision=16: choose from auto"),
        (["optimizer.name=sgd"], "optimizer.name=sgd: choose from adamw, muon"),
        (["optimizer.lr=-1"], "optimizer.lr=-1"),
        (["optimizer.lr=nan"], "optimizer.lr=nan"),
        (["optimizer.lr='nan'"], "optimizer.lr=nan"),
        (["optimizer.lr=inf"], "optimizer.lr=inf: give a finite number"),
        (["optimizer.lr=true"], "optimizer.lr=true: true and false"),
        (["optimizer.weight_decay=nan"], "optimizer.weight_decay=nan"),
        (["optimizer.weight_decay=inf"], "optimizer.weight_decay=inf"),
        (["optimizer.weight_decay=-0.1"], "optimizer.weight_decay=-0.1"),
        (["optimizer.eps=0"], "optimizer.eps=0"),
        (["optimizer.eps=nan"], "optimizer.eps=nan"),
        (["optimizer.betas=[0.9,1]"], r"optimizer.betas=\(0.9, 1.0\): give two numbers"),
        (["optimizer.betas=[nan,0.9]"], r"optimizer.betas=\(nan, 0.9\)"),
        (["optimizer.betas=[-0.1,0.9]"], "optimizer.betas="),
        (["optimizer.momentum=1"], "optimizer.momentum=1"),
        (["optimizer.momentum=nan"], "optimizer.momentum=nan"),
        (["optimizer.ns_steps=0"], "optimizer.ns_steps=0"),
        (["optimizer.ns_steps=51"], "optimizer.ns_steps=51"),
        (["lr_schedule.warmup=soon"], "lr_schedule.warmup=soon: give a share of training"),
        (["lr_schedule.warmup=nan"], "lr_schedule.warmup=nan"),
        (["lr_schedule.decay=nan"], "lr_schedule.decay=nan"),
        (["lr_schedule.end=nan"], "lr_schedule.end=nan"),
        (["k_schedule.hold=nan"], "k_schedule.hold=nan"),
        (["k_schedule.length=nan"], "k_schedule.length=nan"),
        (["k_schedule.length=inf"], "k_schedule.length=inf"),
        (["k_schedule.start=129"], "k_schedule.start=129 is larger than the 128 neurons of resid_post_mlp"),
        (["k_schedule.start=129", "topk.sites=[mlp_neurons,resid_post_attn]"], "128 neurons of resid_post_attn"),
        (["lr_schedule.warmup=5000"], "lr_schedule.warmup=5000 is longer than the run"),
        (["k_schedule.shape=zigzag"], "k_schedule.shape=zigzag: choose from"),
        (["k_schedule.hold=0.7"], "k would never reach its final value"),
        (["k_schedule.start=0"], "k_schedule.start=0"),
        (["data.val_fraction=1.0"], "data.val_fraction=1.0"),
        (["data.num_workers=-1"], "data.num_workers=-1"),
        (["tokenizer.vocab_size=100"], "tokenizer.vocab_size=100"),
        (["tokenizer=file"], "tokenizer.path"),
        (["logger.wandb=maybe"], "logger.wandb=maybe"),
        (["init_from=5"], "init_from=5: give the directory of a run"),
        (["init_from=''"], "init_from=: give the directory of a run"),
        (["training.eval_at_start=sometimes"], "training.eval_at_start=sometimes: "),
        (["seed=-1"], "seed=-1"),
        (["seed=1.5"], "seed=1.5"),
        (["seed=4294967296"], "seed=4294967296: give a whole number from 0 to 4294967295"),
        (["seed=true"], "seed=True"),
        (["data.cache_dir=''"], "data.cache_dir=''"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)


def test_what_is_just_allowed():
    checked("seed=4294967295", "k_schedule.start=128", "optimizer.ns_steps=50", "optimizer.betas=[0,0.999]")
    checked("k_schedule.start=384", "topk.sites=[mlp_neurons]", "data.languages=[fr]")
    checked("topk=none", "k_schedule.start=4000")


SECTIONS = [name for name in composed() if name in RunConfig.__dataclass_fields__ and name not in ("seed", "init_from")]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_setting_that_is_taken_away_is_missed(section):
    """No default of a dataclass takes the place of one of the YAML."""
    for name in composed()[section]:
        if name == "languages":  # of the source, which has it already
            continue
        plain = OmegaConf.to_container(composed(), resolve=True)
        del plain[section][name]
        with pytest.raises(UserError, match=f"{section}.{name} is missing"):
            RunConfig.from_hydra(OmegaConf.create(plain))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("value", [5, None, "small"])
def test_a_section_is_a_group(section, value):
    plain = {**OmegaConf.to_container(composed(), resolve=True), section: value}
    with pytest.raises(UserError, match=f"{section}={value}: this is a group of settings"):
        RunConfig.from_hydra(OmegaConf.create(plain))


def test_a_command_has_settings_of_its_own():
    cfg = composed(name="benchmark")
    RunConfig.from_hydra(cfg, own=("what", "rounds", "shapes"))
    with pytest.raises(UserError, match="what is not a setting of topklm"):
        RunConfig.from_hydra(cfg)


def test_a_stored_config_is_as_good_as_a_composed_one():
    """Without interpolations, as a run directory keeps it."""
    cfg = composed("data=hub", "data.path=x")
    stored = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert RunConfig.from_hydra(stored) == RunConfig.from_hydra(cfg)


def test_tokens_win_over_steps():
    assert checked("training.tokens=1M", "training.batch_tokens=4096").training.steps == 245


def test_a_schedule_per_block():
    """Durations of every kind, a list or one value; 600 steps of 4,096 tokens."""
    settings = ("k_schedule=linear", "k_schedule.start=[64,null,32]", "k_schedule.length=0.5")
    config = checked(*settings, "k_schedule.hold=[0,'60 steps',10%]")
    schedule = config.k_schedule_of(config.model_config(257))
    ks = [[schedule.k(p, block, width=128, final=16) for block in range(3)] for p in (0.05, 0.1, 0.35, 0.6)]
    assert ks == [[59, 128, 32], [54, 128, 32], [30, 72, 24], [16, 16, 16]]
    tokens = checked("k_schedule.length=[122880 tokens,60,0.05]")  # 30 steps, 60, 30
    blocks = tokens.k_schedule_of(tokens.model_config(257)).blocks
    assert [schedule.length for schedule, _ in blocks] == pytest.approx([0.05, 0.1, 0.05])


def test_presets_of_k():
    """What docs/k.md says they do: k of 128 down to 16, at tenths of the run."""
    found = {}
    for preset in ("linear", "cosine", "exponential", "step", "delayed", "constant"):
        config = checked(f"k_schedule={preset}")
        schedule = config.k_schedule_of(config.model_config(257))
        found[preset] = [schedule.k(tenth / 10, 0, 128, 16) for tenth in range(11)]
    assert found == {
        "linear": [128, 106, 83, 61, 38] + [16] * 6,
        "cosine": [128, 117, 89, 55, 27] + [16] * 6,
        "exponential": [128, 84, 56, 37, 24] + [16] * 6,
        "step": [128, 114, 86, 72, 44] + [16] * 6,
        "delayed": [128, 128, 128, 100, 72, 44] + [16] * 5,
        "constant": [16] * 11,
    }


def test_counts():
    assert [parse_count(text, "x") for text in ("123", "2k", "1.5M", "1B", 7)] == [123, 2000, 1_500_000, 10**9, 7]


@pytest.mark.parametrize(
    ("share", "micro", "expected"),
    [(16, None, 16), (16, 2048, 8), (12, 2048, 6), (7, 2048, 7), (7, 1024, 1), (16, 10**9, 16)],
)
def test_micro_batches_divide_the_share(share, micro, expected):
    assert TrainingConfig(micro_batch_tokens=micro).micro_windows(256, share, "cpu") == expected


def test_build_keeps_lists_and_numbers():
    given = {**vars(TopKConfig()), "k": [1, 2], "sites": ["mlp_neurons"], "layers": [0, 1]}
    config = build(TopKConfig, given, "topk")
    assert (config.k, config.sites, config.layers) == ([1, 2], ("mlp_neurons",), (0, 1))


def test_a_broken_interpolation_is_named():
    cfg = composed()
    OmegaConf.update(cfg, "training.steps", "${nowhere}")
    with pytest.raises(UserError, match="nowhere"):
        RunConfig.from_hydra(cfg)
