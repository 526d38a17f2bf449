"""The configs as users meet them: every choice composes and stands up to the checks."""

import copy
import functools
import itertools

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tests.composing import CONF, checked, composed
from topklm.model import TopKConfig
from topklm.training.config import RunConfig

CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("debug", "experiment", "hparams_search", "shared", "study")
)
OVERLAYS = sorted(
    f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name in ("debug", "experiment")
)
NEEDS = {
    "tokenizer=file": ["tokenizer.path=t.json"],
    "tokenizer=hub": ["tokenizer.repo=gpt2"],
    "data=files": ["data.paths=[texts]"],
    "data=tokens": ["data.paths=[ids.bin]"],
    "data=hub": ["data.path=name"],
}


@pytest.mark.parametrize("choice", CHOICES + OVERLAYS)
def test_every_choice_composes_and_is_valid(choice):
    checked(choice, *NEEDS.get(choice, []))


def test_every_setting_of_topk_is_in_its_config():
    assert set(composed().topk) == set(TopKConfig.__dataclass_fields__)


def test_sizes():
    sizes = {}
    for name in ("nano", "tiny", "small", "medium", "large"):
        config = checked(f"model={name}")
        model = config.model_config(50304)
        sizes[name] = (
            model.n_layers,
            model.d_model,
            [model.topk.final_k(i, model.d_model) for i in range(len(model.topk.topk_layers(model.n_layers)))],
        )
    assert sizes["medium"] == (24, 1024, [128] * 22)
    assert sizes["large"] == (24, 2048, [128] * 22)
    assert sizes["small"][:2] == (12, 768)


def test_one_override_beats_a_preset():
    assert checked("model=medium", "topk.k=64").topk.k == 64
    assert checked("model=medium", "topk=none").topk.sites == ()


def test_the_dense_twin_differs_in_nothing_but_topk():
    sparse, dense = (OmegaConf.to_container(composed(*o), resolve=True) for o in ((), ("topk=none",)))
    assert sparse.pop("topk") != dense.pop("topk")
    assert sparse == dense


def test_the_smoke_overlay_leaves_the_loggers_to_who_asks():
    assert composed("debug=smoke").logger.wandb is False
    assert composed("debug=smoke", "logger=wandb").logger.wandb is True
    assert composed("debug=smoke", "logger=tensorboard").logger.tensorboard is True


def test_every_entry_script_composes():
    assert composed(name="benchmark").what == "step"
    assert composed(name="plan").plan.device is None
    assert composed(name="prepare_data").verify is False
    assert composed(name="train_tokenizer").out == "tokenizer.json"
    assert composed(name="data_card").limit == 10_000
    assert composed(name="plot_run").run is None
    assert composed("pretrained=x", "out=y", name="import_model").revision is None
    assert "perl-doc" in composed(name="fetch_debian_docs").packages
    assert composed("sweep=a", name="sweep_report").out is None


STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_every_study_is_valid(name):
    study = composed(f"study={name}", name="study").study
    assert study.name == name
    assert study.reference in study.variants
    for overrides in study.variants.values():
        RunConfig.from_hydra(with_values((*study.base, *overrides)))


@functools.cache
def of_choices(*choices):
    return composed(*choices)


def with_values(overrides):
    """The config of these overrides, as Hydra makes it: choices first, then values one after another. Composing takes
    long, so what has the same choices shares it."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [override for override in parsed if (CONF / override.key_or_group).is_dir()]
    config = copy.deepcopy(of_choices(*(override.input_line for override in choices)))
    for override in parsed:
        if override not in choices:
            OmegaConf.update(config, override.key_or_group, override.value())  # refuses a name that is not there
    return config


def test_values_are_put_where_hydra_puts_them():
    overrides = ("topk.k=32", "logger=csv", "topk.sites=[mlp_neurons]", "k_schedule=cosine", "k_schedule.length=0.25")
    assert with_values(overrides) == composed(*overrides)
    with pytest.raises(ConfigAttributeError):
        with_values(["topk.kk=32"])


@pytest.mark.parametrize(
    ("width", "head_dim"), [(128, 64), (192, 64), (256, 64), (160, 80), (200, 100), (130, 130), (64, 64), (48, 48)]
)
def test_heads_are_64_wide_or_the_next_that_comes_out_even(width, head_dim):
    assert checked(f"model.d_model={width}").model_config(300).head_dim == head_dim


@pytest.mark.parametrize(("width", "kv_heads", "heads"), [(192, 2, 2), (256, 2, 4), (384, 3, 6), (64, 2, 2)])
def test_as_many_heads_as_key_value_heads_can_share(width, kv_heads, heads):
    settings = (f"model.d_model={width}", f"model.n_kv_heads={kv_heads}")
    assert checked(*settings).model_config(300).n_heads == heads


@pytest.mark.parametrize("model", ["nano", "tiny", "small", "medium"])
def test_heads_of_the_presets_are_64_wide(model):
    assert checked(f"model={model}").model_config(300).head_dim == 64


def test_every_job_of_the_wandb_sweep_composes(monkeypatch):
    """With its parameters as the agent would write them."""
    sweep = OmegaConf.to_container(OmegaConf.load(CONF.parent / "scripts" / "wandb_sweep.yaml"), resolve=False)
    assert (CONF.parent / sweep["program"]).exists()
    assert sweep["command"][-1] == "${args_no_hyphens}"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    (place,) = (part for part in create_sweep_command(sweep["command"]) if part.startswith("hydra.run.dir="))
    assert composed(place, name="train", return_hydra_config=True).hydra.run.dir == "sweeps/s1/r1"
    names, choices = zip(*((n, p.get("values", [p.get("value")])) for n, p in sweep["parameters"].items()), strict=True)
    jobs = list(itertools.product(*choices))
    assert len(jobs) == 9
    for values in jobs:
        args = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        overrides = create_sweep_command_args({"args": args})["args_no_hyphens"]
        config = checked("logger=wandb", *overrides)
        assert config.logger.wandb is True
        assert config.model_config(300).head_dim == 64
        assert f"topk.k={config.topk.k}" in overrides
