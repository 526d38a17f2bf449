"""Memory without data is memory with data, as torch's profiler sees it allocated."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from topklm.model import ModelConfig, TopKConfig, TopKTransformer, attention, loss
from topklm.plan.memory import step_memory
from topklm.schedules import KSchedule, Schedule
from topklm.training.optim import build_optimizer
from topklm.training.sections import OptimizerConfig


def allocated(model_config, optimizer_config, windows, precision):
    """Bytes of weights with buffers, gradients and optimizer state, and the most that a second step allocates on
    top."""
    torch.manual_seed(0)
    model = TopKTransformer(model_config)
    optimizer = build_optimizer(model, optimizer_config)
    ids = torch.zeros(windows, model_config.seq_len + 1, dtype=torch.int64)

    def gradients():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            mean = model.loss(ids[:, :-1], ids[:, 1:])
        mean.backward()

    gradients()
    optimizer.step()
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        gradients()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    inner = getattr(optimizer, "inner", {"one": optimizer}).values()
    state = sum(
        value.nbytes
        for one in inner
        for held in one.state.values()
        for value in held.values()
        if torch.is_tensor(value)
    )
    grads = sum(parameter.grad.nbytes for parameter in model.parameters())
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return weights, grads, state, peak - grads


@pytest.mark.parametrize(("name", "precision", "length"), [("adamw", "32-true", 64), ("muon", "bf16-mixed", 600)])
def test_memory_is_what_a_real_step_takes(name, precision, length):
    topk = TopKConfig(sites=("resid_post_mlp", "mlp_neurons"))
    model = ModelConfig(
        vocab_size=500, d_model=64, n_heads=4, n_kv_heads=2, n_layers=3, seq_len=length, tied=True, topk=topk
    )
    optimizer = OptimizerConfig(name=name)
    found = step_memory(
        model, optimizer, micro_windows=2, micro_batches=1, precision=precision, documents=False, on_gpu=False
    )
    weights, gradients, state, activations = allocated(model, optimizer, 2, precision)
    assert found.weights == pytest.approx(weights, abs=64)  # a bool per site that is no buffer
    assert (found.gradients, found.optimizer) == (gradients, state)
    assert found.activations == pytest.approx(activations, rel=0.03)
    assert found.total == found.weights + found.gradients + found.optimizer + found.activations


def memory(vocab_size=500, seq_len=128, n_layers=2, **options):
    model = ModelConfig(vocab_size=vocab_size, d_model=64, n_heads=4, n_layers=n_layers, seq_len=seq_len)
    usual = {"micro_windows": 4, "micro_batches": 1, "precision": "bf16-mixed", "documents": False, "on_gpu": False}
    return step_memory(model, OptimizerConfig(), **{**usual, **options})


def test_what_it_grows_with():
    base = memory()
    assert memory(micro_windows=8).activations > 1.8 * base.activations
    accumulating = memory(micro_batches=4)
    assert accumulating.activations > base.activations  # gradients that are added to those that are there
    assert accumulating.total - accumulating.activations == base.total - base.activations
    assert memory(precision="bf16-true").weights < 0.6 * base.weights
    assert memory(documents=True).activations > base.activations  # who sees whom
    mixed, true = memory(), memory(precision="bf16-true")
    assert true.optimizer == mixed.optimizer + 2 * true.gradients  # float32 masters of bfloat16 weights


def test_activation_checkpointing_takes_less():
    ways = ("none", "selective", "block", "block_sparse")
    none, selective, block, packed = (memory(seq_len=256, n_layers=5, checkpointing=way).activations for way in ways)
    assert none > 2 * selective > 3 * block
    assert packed < block


def test_what_is_packed_is_that_of_the_largest_k():
    def packed(start):
        schedule = KSchedule(((Schedule("linear"), start),) * 4)
        return memory(seq_len=256, n_layers=5, checkpointing="block_sparse", k_schedule=schedule).activations

    assert packed(1) == packed(8) == memory(seq_len=256, n_layers=5, checkpointing="block_sparse").activations
    assert packed(8) < packed(32) < packed(None)
    assert packed(None) == memory(seq_len=256, n_layers=5, checkpointing="block").activations


def test_a_gpu_keeps_no_attention_weights_and_the_constants_are_put_back():
    before = attention.WRITTEN_OUT_POSITIONS, dict(loss.CHUNK_BYTES)
    cpu, gpu = (memory(vocab_size=16, seq_len=512, on_gpu=on_gpu).activations for on_gpu in (False, True))
    weights = 2 * 4 * 4 * 512 * 512 * 2  # bytes: two blocks, 4 windows, 4 heads, each token on each, in bfloat16
    assert cpu - gpu > 0.9 * weights
    assert before == (attention.WRITTEN_OUT_POSITIONS, loss.CHUNK_BYTES)
    # Its logits, 18 MB in float32, come in one chunk there, and in three here.
    cpu, gpu = (memory(vocab_size=9000, on_gpu=on_gpu).activations for on_gpu in (False, True))
    assert gpu - cpu > 5e6
