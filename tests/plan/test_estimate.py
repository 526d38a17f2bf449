"""A plan's numbers, by the formulas that it states."""

import pytest

from topklm.benchmarks.contenders import Bench
from topklm.errors import UserError
from topklm.model import TopKTransformer, count_flops, count_parameters
from topklm.plan import estimate
from topklm.plan.estimate import make_plan
from topklm.plan.page import header, page, row


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(estimate, "step_memory", lambda *args, **options: estimate.Memory(1, 1, 1, 1))


def test_a_named_device(asked):
    config, settings = asked(
        "plan.device=H100", "plan.devices=4", "plan.mfu=0.25", "plan.euro_per_gpu_hour=3", "training.tokens=1M"
    )
    plan = make_plan(config, settings)
    model = TopKTransformer(config.model_config(4096))
    assert sum(plan.parameters.values()) == count_parameters(model)
    assert plan.tokens == plan.steps * 512 == 1_000_448
    seconds = 1_000_448 * count_flops(model.config).training / (4 * 0.25 * 989e12)
    assert plan.seconds == pytest.approx(seconds)
    assert plan.device_hours == pytest.approx(4 * seconds / 3600)
    assert plan.kwh == pytest.approx(0.7 * 4 * seconds / 3600)
    assert plan.euro == pytest.approx(3 * 4 * seconds / 3600)
    assert (plan.device, plan.devices, plan.precision) == ("H100", 4, "bf16-mixed")
    assert (plan.micro_windows, plan.micro_batches) == (2, 1)
    text = page(plan)
    for part in ("4 x H100", "1,000,448 tokens", f"{count_parameters(model):,}", "25% of the dense bf16 peak", "700 W"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(row(plan, "job").split()) == len(header().split())


def test_memory_is_that_of_the_devices_share(asked):
    one, four = (
        make_plan(*asked("plan.device=A100", f"plan.devices={n}", "training.batch_tokens=4096")) for n in (1, 4)
    )
    assert one.memory.optimizer == four.memory.optimizer
    assert one.memory.activations > 3 * four.memory.activations
    assert one.seconds == pytest.approx(4 * four.seconds)


@pytest.mark.parametrize(("how", "twice"), [("selective", False), ("block", True), ("block_sparse", True)])
def test_what_is_computed_twice_takes_time(asked, no_memory, how, twice):
    without, plan = (
        make_plan(*asked("plan.device=H100", f"trainer.activation_checkpointing={way}")) for way in ("none", how)
    )
    flops = plan.flops
    again = flops.blocks + flops.attention if twice else 0
    assert plan.seconds == pytest.approx(without.seconds * (flops.training + again) / flops.training)
    assert plan.total_flops == without.total_flops
    text = " ".join(page(plan).split())
    assert (f"{flops.training + again:.3g} with what activation checkpointing computes again" in text) == twice
    assert ("plan.mfu is that without it" in text) == twice


def test_watts_of_the_user_win(asked, no_memory):
    plan = make_plan(*asked("plan.device=B200", "plan.watts=500"))
    assert plan.kwh == pytest.approx(plan.device_hours / 2)
    assert plan.euro is None
    assert "500 W for each device (plan.watts)" in " ".join(page(plan).split())


def test_this_cpu_is_timed(asked, no_memory, monkeypatch):
    """A clock on which a step takes half a second."""
    calls, now = [], [0.0]

    def step():
        calls.append(1)
        now[0] += 10.0 if len(calls) == 1 else 0.5  # the first is slow

    monkeypatch.setattr(Bench, "ours", lambda self, telemetry: step)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    plan = make_plan(*asked())
    assert len(calls) == 1 + estimate.TIMED_STEPS
    assert plan.seconds == 12 * 0.5
    assert plan.kwh is plan.euro is None
    assert "steps on random tokens take 0.5 s here and now, the mean of 5" in " ".join(page(plan).split())
    assert make_plan(*asked("plan.watts=100")).kwh == pytest.approx(0.1 * 6 / 3600)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (
            ["training.batch_tokens=65536", "model.n_layers=40", "model.d_model=320"],
            "TFLOPs, too many to time on a CPU",
        ),
        (["plan.devices=2"], "2 devices cannot be timed by one"),
    ],
)
def test_what_is_too_much_for_this_machine_is_not_timed(asked, no_memory, overrides, why):
    plan = make_plan(*asked(*overrides))
    assert plan.seconds is plan.device_hours is plan.kwh is plan.euro is None
    text = " ".join(page(plan).split())
    assert why in text
    assert "time not known" in text
    assert row(plan, "job").split()[-4:] == ["-", "-", "-", "job"]


def test_too_little_memory(asked, no_memory, monkeypatch):
    monkeypatch.setattr(estimate, "_free_bytes", lambda: 3)
    assert "0.0 GB are free here" in page(make_plan(*asked()))


@pytest.mark.parametrize(
    ("constant", "activations", "overrides", "remedies"),
    [
        (3, 20, [], None),
        (
            8,
            20,
            [],
            "training.micro_batch_tokens=384, trainer.activation_checkpointing=block_sparse, "
            "trainer.precision=bf16-true or a smaller model",
        ),
        (25, 1, ["trainer.activation_checkpointing=block_sparse"], "trainer.precision=bf16-true or a smaller model"),
        (
            25,
            1,
            ["trainer.activation_checkpointing=block_sparse", "trainer.precision=bf16-true"],
            "a smaller model",
        ),
    ],
)
def test_whether_it_fits(asked, monkeypatch, constant, activations, overrides, remedies):
    """8 windows of 64 tokens beside 24 GB: where 8 GB stay and 20 go with the windows, 6 windows are left."""
    needed = estimate.Memory(0, 0, int(constant * 1e9), int(activations * 1e9))
    monkeypatch.setattr(estimate, "step_memory", lambda *args, **options: needed)
    plan = make_plan(*asked("plan.device=L4", *overrides))
    text = " ".join(page(plan).split())
    assert f"{constant + activations} GB of 24 GB: weights" in text
    assert plan.fits == (remedies is None)
    assert ("DOES NOT FIT" in text) == (not plan.fits)
    if remedies is not None:
        assert f"DOES NOT FIT less memory is needed with {remedies} FLOPs per token" in text
    assert (f"{constant + activations}.00 > 24" in row(plan, "job")) == (not plan.fits)


def test_the_vocabulary_is_the_tokenizers(asked, no_memory):
    plan = make_plan(*asked("tokenizer=bytes", "plan.device=L4"))
    assert plan.model.vocab_size == 257
    assert not any(sentence.startswith("Vocabulary") for sentence in plan.assumptions)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.device=TPU"], "plan.device=TPU is not known: choose from B200, .*MI300X"),
        (["plan.mfu=0"], "plan.mfu=0.0: give a share of the peak above 0 and at most 1"),
        (["plan.mfu=1.5"], "plan.mfu=1.5"),
        (["plan.devices=0"], "plan.devices=0: give 1 or more, or null"),
        (["plan.watts=-1"], "plan.watts=-1.0: give 0 or more, or null"),
        (["plan.euro_per_gpu_hour=nan"], "plan.euro_per_gpu_hour=nan: give a finite number"),
        (["+plan.gpu=1"], "plan.gpu is not a setting of topklm"),
        (["~plan.mfu"], "plan.mfu is missing"),
        (["plan.device=H100", "plan.devices=3"], "plan.devices=3 cannot share the 8 windows"),
        (["plan.device=H100", "trainer.precision=32"], "trainer.precision=32: the peak of H100 is known for bf16 only"),
        (["trainer=gpu"], "trainer.accelerator=gpu is not on this machine: name it with plan.device=H100"),
        (["plan.device=H100", "topk.k=500"], "topk.k=500 is larger than the 32 neurons"),
    ],
)
def test_mistakes(asked, monkeypatch, overrides, message):
    monkeypatch.setattr(estimate.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        make_plan(*asked(*overrides))
