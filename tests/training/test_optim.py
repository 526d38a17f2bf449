"""Optimizers: groups by rule, and one Muon+AdamW object that equals the two apart."""

import pytest
import torch

from topklm.model import ModelConfig, TopKTransformer
from topklm.training.optim import MuonAdamW, build_optimizer, forget
from topklm.training.sections import OptimizerConfig


def model(**changes) -> TopKTransformer:
    torch.manual_seed(0)
    return TopKTransformer(
        ModelConfig(**{"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 2, "seq_len": 16, **changes})
    )


def train(m, optimizer, steps=3, first=0):
    for step in range(first, first + steps):
        ids = torch.randint(0, 97, (4, 17), generator=torch.Generator().manual_seed(step))
        m.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_with_its_rule(name):
    m = model(mup_base_width=16)
    optimizer = build_optimizer(m, OptimizerConfig(name=name, lr=0.1, weight_decay=0.3))
    names = {
        parameter.data_ptr(): n for n, parameter in m.named_parameters()
    }  # a first part begins where the whole does
    sizes = dict.fromkeys(names.values(), 0)
    for group in optimizer.param_groups:
        for p in group["params"]:
            n = names[p.untyped_storage().data_ptr()]
            sizes[n] += p.numel()
            matrix = p.dim() == 2 and n not in ("embed.weight", "head.weight")
            assert group["weight_decay"] == (0.3 if matrix or n == "head.weight" else 0.0)
            scale = (0.5 if name == "adamw" else 0.5**0.5) if matrix else 1.0
            assert group["lr"] == group["peak_lr"] == pytest.approx(0.1 * scale)
    assert sizes == {n: p.numel() for n, p in m.named_parameters()}


def test_muon_with_adamw_equals_both_apart():
    """Muon on copies of each matrix, the stacked ones cut up."""
    together, apart = model(n_heads=4, n_kv_heads=2), model(n_heads=4, n_kv_heads=2)
    config = OptimizerConfig(name="muon", lr=0.01)
    train(together, build_optimizer(together, config))
    cuts = {"qkv": (32, 16, 16), "gate_up": (128, 128)}
    matrices = [
        (p, [torch.nn.Parameter(part.clone()) for part in p.data.split(cuts.get(n.split(".")[-2], len(p)))])
        for n, p in apart.named_parameters()
        if p.dim() == 2 and n not in ("embed.weight", "head.weight")
    ]
    assert sorted(len(copies) for _, copies in matrices) == [1, 1, 1, 1, 2, 2, 3, 3]
    decayed = [apart.head.weight]
    rest = [p for n, p in apart.named_parameters() if p.dim() == 1 or n == "embed.weight"]
    copies = [copy for _, copies in matrices for copy in copies]
    muon = torch.optim.Muon(copies, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.1}],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=True,
    )

    class Both:
        def step(self):
            for whole, copies in matrices:
                for copy, grad in zip(copies, whole.grad.split([len(c) for c in copies]), strict=True):
                    copy.grad = grad.clone()
            muon.step()
            adamw.step()
            for whole, copies in matrices:
                whole.data.copy_(torch.cat([c.data for c in copies]))

        def zero_grad(self):
            apart.zero_grad()

    train(apart, Both())
    for ours, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_no_gradient_is_left_and_a_model_may_move():
    """The parts follow the parameters to other memory, as on the way to a device."""
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(name="muon", lr=0.01))
    for parameter in m.parameters():
        parameter.data = parameter.data.clone()
    before = [p.clone() for p in m.parameters()]
    train(m, optimizer, 1)
    assert all(not torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))
    assert all(p.grad is None for p in m.parameters())
    assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


def test_a_rate_set_on_the_outside_reaches_the_inside():
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(name="muon"))
    before = [p.clone() for p in m.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(m, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_can_be_saved_and_taken_up(name, tmp_path):
    config = OptimizerConfig(name=name, lr=0.01)
    straight, stopped = model(), model()
    train(straight, build_optimizer(straight, config), 6)
    first = build_optimizer(stopped, config)
    train(stopped, first, 3)
    torch.save({"model": stopped.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = model()
    resumed.load_state_dict(state["model"])
    second = build_optimizer(resumed, config)
    second.load_state_dict(state["optimizer"])
    for group in second.param_groups:
        assert group["peak_lr"] == 0.01
    train(resumed, second, 3, first=3)
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_closure_runs_once():
    optimizer = build_optimizer(model(), OptimizerConfig(name="muon"))
    assert isinstance(optimizer, MuonAdamW)
    calls = []
    assert optimizer.step(lambda: calls.append(1) or 5.0) == 5.0
    assert calls == [1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("which", ["blocks.1.attn.qkv.weight", "blocks.0.mlp.down.weight", "head.weight"])
def test_what_it_forgets_is_gone_from_the_next_step_and_nothing_else(name, which):
    """With a gradient of zero only what is remembered moves a weight."""
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(name=name, lr=0.1, weight_decay=0.0))
    train(m, optimizer)
    parameter = dict(m.named_parameters())[which]
    where = torch.zeros_like(parameter, dtype=torch.bool)
    where[:, 3] = True
    where[1] = True
    remembered = moments(optimizer)
    forget(optimizer, parameter, where)
    changed = 0
    for before, after in zip(remembered, moments(optimizer), strict=True):
        assert ((after == before) | (after == 0)).all()
        changed += int((after != before).sum())
    of_muon = name == "muon" and which != "head.weight"
    assert changed == int(where.sum()) * (1 if of_muon else 2)  # one momentum, or two moments
    if not of_muon:
        stood = parameter.detach().clone()
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.equal(parameter[where], stood[where])
        assert not torch.equal(parameter, stood)


def moments(optimizer):
    """Copies of all that is kept per entry of a matrix."""
    inner = optimizer.inner.values() if isinstance(optimizer, MuonAdamW) else [optimizer]
    return [kept.clone() for one in inner for state in one.state.values() for kept in state.values() if kept.dim() == 2]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_leaves_a_trace_on_every_parameter(name):
    """By which those who hold copies (DecodeWeights) see that they are old, also where Muon works on parts."""
    m = model()
    optimizer = build_optimizer(m, OptimizerConfig(name=name))
    before = {key: parameter._version for key, parameter in m.named_parameters()}
    train(m, optimizer, steps=1)
    assert [key for key, parameter in m.named_parameters() if parameter._version == before[key]] == []
