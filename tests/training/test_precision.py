"""bfloat16 weights: the optimizer works on float32 masters, and only weights are rounded."""

import copy

import lightning as L
import pytest
import torch

from topklm.callbacks.base import gradient_norm
from topklm.errors import UserError
from topklm.model import ModelConfig, TopKConfig, TopKTransformer
from topklm.schedules import KSchedule, Schedule, Trapezoid
from topklm.training.module import TopKLM
from topklm.training.optim import build_optimizer, forget
from topklm.training.precision import BFloat16Weights, MasterWeights, parameters_to_bfloat16
from topklm.training.sections import OptimizerConfig

SHAPE = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 2, "seq_len": 16}
TOPK = TopKConfig(k=6, grad="ste")


def model(bfloat16=True, **changes):
    torch.manual_seed(0)
    made = TopKTransformer(ModelConfig(**SHAPE, **changes, topk=TOPK))
    if bfloat16:
        parameters_to_bfloat16(made)
    return made


def backward(m, step):
    ids = torch.randint(0, 97, (4, 17), generator=torch.Generator().manual_seed(step))
    m.loss(ids[:, :-1], ids[:, 1:]).backward()


def train(m, optimizer, steps, first=0):
    for step in range(first, first + steps):
        backward(m, step)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_steps_are_those_of_float32_weights_with_these_gradients(name, tied):
    """A float32 twin takes the gradients of the bfloat16 model, which takes its weights, rounded, by hand."""
    ours, rounded = model(tied=tied), model(tied=tied)
    twin = TopKTransformer(ours.config)
    twin.load_state_dict(ours.state_dict())
    config = OptimizerConfig(name=name, lr=0.01)
    optimizer, of_twin = build_optimizer(ours, config), build_optimizer(twin, config)
    assert isinstance(optimizer, MasterWeights)
    for step in range(3):
        backward(ours, step)
        backward(rounded, step)
        for mine, its in zip(twin.parameters(), rounded.parameters(), strict=True):
            mine.grad, its.grad = its.grad.float(), None
        optimizer.step()
        of_twin.step()
        optimizer.zero_grad()
        of_twin.zero_grad()
        for (key, mine), its in zip(twin.named_parameters(), rounded.parameters(), strict=True):
            its.data = mine.detach().bfloat16()
            assert torch.equal(optimizer.masters[key], mine)
            assert torch.equal(dict(ours.named_parameters())[key], its)
    assert all(p.grad is None for p in (*ours.parameters(), *optimizer.masters.values()))


def test_updates_too_small_for_bfloat16_add_up():
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(lr=1e-3, weight_decay=0.0))
    gain = m.norm_out.gain  # starts as 1, which the next bfloat16 is 1/256 below
    weights = []
    for _ in range(12):
        gain.grad = torch.ones_like(gain)
        optimizer.step()
        weights.append(gain[0].item())
    assert weights[0] == 1.0
    torch.testing.assert_close(optimizer.masters["norm_out.gain"], torch.full((32,), 1 - 12e-3))
    torch.testing.assert_close(weights[-1], 1 - 12e-3, atol=1 / 512, rtol=0)


def test_a_rate_set_on_the_outside_reaches_the_inside():
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(name="muon"))
    before = copy.deepcopy(optimizer.masters)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(m, optimizer, 2)
    assert all(torch.equal(master, before[name]) for name, master in optimizer.masters.items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_it_goes_on_exactly_from_what_is_saved(name, tmp_path):
    config = OptimizerConfig(name=name, lr=0.01)
    straight, stopped, resumed = model(), model(), model()
    train(straight, build_optimizer(straight, config), 6)
    first = build_optimizer(stopped, config)
    train(stopped, first, 3)
    torch.save({"model": stopped.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["model"])
    second = build_optimizer(resumed, config)
    second.load_state_dict(state["optimizer"])
    train(resumed, second, 3, first=3)
    assert not all(torch.equal(master, master.bfloat16().float()) for master in second.masters.values())
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_without_masters_is_refused():
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig())
    with pytest.raises(UserError, match="a version of topklm that had no master weights"):
        optimizer.load_state_dict(optimizer.inner.state_dict())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_drawn_anew_reach_the_masters_and_their_moments_are_gone(name):
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(name=name, lr=0.1, weight_decay=0.0))
    train(m, optimizer, 2)
    key = "blocks.1.attn.qkv.weight"
    parameter, master = dict(m.named_parameters())[key], optimizer.masters[key]
    before = master.clone()
    where = torch.zeros_like(parameter, dtype=torch.bool)
    where[40] = True
    parameter.data[40] = 0.3
    forget(optimizer, parameter, where)
    assert torch.equal(master[40], parameter[40].float())
    assert torch.equal(master[:40], before[:40])
    inner = optimizer.inner.inner["muon"] if name == "muon" else optimizer.inner
    gone = [kept for state in inner.state.values() for kept in state.values() if kept.dim() == 2]
    assert any((kept == 0).all(1).any() for kept in gone)


def test_the_norm_of_a_gradient_is_float32():
    parameters = [torch.nn.Parameter(torch.randn(50, 30).bfloat16()) for _ in range(3)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    exact = torch.cat([p.grad.double().flatten() for p in parameters]).norm()
    assert gradient_norm(parameters).dtype == torch.float32
    torch.testing.assert_close(gradient_norm(parameters).double(), exact, rtol=1e-5, atol=0)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return TopKLM(
        ModelConfig(**SHAPE, topk=TOPK),
        OptimizerConfig(name="muon", lr=0.01),
        steps=4,
        tokens_per_step=4 * 16,
        log_every=1,
        k_schedule=KSchedule(((Schedule("linear", 0.0, 0.5), None),)),
        lr_schedule=Trapezoid(0.0, 0.0, "constant"),
        micro_windows=2,
        clip_grad_norm=0.5,
        byte_lengths=torch.arange(97) % 7,
        eot_id=None,
        padded=False,
        val_sources=[""],
        run_config={},
    )


def test_a_run_in_lightning(module):
    """Only parameters are rounded; sums, angles and what the log gets stay float32."""
    buffers = {name: buffer.dtype for name, buffer in module.named_buffers()}
    batches = [torch.randint(0, 97, (4, 17)) for _ in range(4)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        plugins=[BFloat16Weights()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert trainer.precision == "bf16-true"
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {name: buffer.dtype for name, buffer in module.named_buffers()} == buffers
    assert module.loss.dtype == module.grad_norm.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    for name, master in trainer.optimizers[0].masters.items():
        assert torch.equal(dict(module.model.named_parameters())[name], master.bfloat16())
    assert 4 < module.latest["train/loss"] < 6  # chance is log 97
