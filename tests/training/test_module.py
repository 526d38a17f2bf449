"""The training step, beside plain PyTorch; k and the metrics of validation, beside formulas."""

import copy
import json
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from topklm.callbacks import GradientNorms, gradients
from topklm.model import ModelConfig, TopKConfig
from topklm.schedules import KSchedule, Schedule, Trapezoid
from topklm.training.module import TopKLM
from topklm.training.optim import build_optimizer
from topklm.training.sections import OptimizerConfig

MODEL = {"vocab_size": 97, "d_model": 16, "n_layers": 3, "n_heads": 2, "seq_len": 24}


def every_block(schedule, start=None):
    """The same schedule for two TopK blocks."""
    return KSchedule(((schedule, start),) * 2)


@pytest.fixture
def module():
    """module(micro_windows=..., topk={...}): a TopKLM with AdamW, at a constant rate."""

    def make(topk=None, **options):
        torch.manual_seed(0)
        settings = {
            "steps": 10,
            "tokens_per_step": 8 * 24,
            "log_every": 1,
            "k_schedule": every_block(Schedule("linear", 0.0, 0.5)),
            "lr_schedule": Trapezoid(0.0, 0.0, "constant"),
            "micro_windows": 8,
            "clip_grad_norm": None,
            "byte_lengths": torch.arange(97) % 7,
            "eot_id": None,
            "padded": False,
            "val_sources": [""],
            "run_config": {},
        }
        config = ModelConfig(**MODEL, topk=TopKConfig(**{"k": 4, **(topk or {})}))
        return TopKLM(config, OptimizerConfig(lr=0.01), **{**settings, **options})

    return make


def fit(module, batches, validation=(), callbacks=()):
    """Trains on these batches by Lightning, and validates after the last; returns the module."""

    class Validation:  # without a length, as in a run
        def __iter__(self):
            return iter(validation)

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=len(batches),
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=len(batches),
        check_val_every_n_epoch=None,
        limit_val_batches=None if validation else 0,
    )
    as_they_are = {"batch_size": None, "collate_fn": lambda batch: batch}
    trainer.fit(module, torch.utils.data.DataLoader(list(batches), **as_they_are), Validation() if validation else None)
    return module


def windows(n, seed=0, padded=False):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 97, (n, 25), generator=generator)
    if padded:
        for row, length in zip(ids, torch.randint(5, 25, (n,), generator=generator).tolist(), strict=True):
            row[length:] = -1
    return ids


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_equals_one_big_batch(module, micro, padded):
    batches = [windows(8, seed, padded) for seed in range(3)]
    whole = fit(module(padded=padded), batches)
    parts = fit(module(padded=padded, micro_windows=micro), batches)
    assert parts.latest["train/loss"] == pytest.approx(whole.latest["train/loss"], rel=1e-5)
    assert parts.latest["train/grad_norm"] == pytest.approx(whole.latest["train/grad_norm"], rel=1e-4)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_steps_are_those_of_plain_pytorch(module, clip):
    """Loss by cross_entropy, k by the schedule, clipping and AdamW, written out."""
    batches = [windows(8, seed) for seed in range(4)]
    ours = module(clip_grad_norm=clip, micro_windows=4)
    model = copy.deepcopy(ours.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for group in optimizer.param_groups:
        decays = {"head.weight"} | {n for n, p in model.named_parameters() if p.dim() == 2 and n != "embed.weight"}
        group["weight_decay"] = 0.0
    for step, ids in enumerate(batches, start=1):
        model.set_k([round(16 + (4 - 16) * min(1, step / 10 / 0.5))] * 2)
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.grad *= min(1.0, (clip or math.inf) / norm.item())
                if name in decays:
                    p *= 1 - 0.01 * 0.1
        optimizer.step()
        optimizer.zero_grad()
    fit(ours, batches)
    assert ours.latest["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert ours.latest["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert ours.latest["train/tokens"] == 4 * 8 * 24
    for mine, theirs in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("micro", [8, 2])
def test_the_z_loss_is_added_and_logged_and_no_part_of_the_loss(module, micro):
    ours = module(z_loss=0.01, micro_windows=micro, padded=True)
    model, ids = copy.deepcopy(ours.model), windows(8, padded=True)
    model.set_k([14, 14])  # as the schedule has it at the end of the first of ten steps
    logits, targets = model(ids[:, :-1].clamp_min(0)), ids[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1)
    squared_log_z = logits.flatten(0, 1).logsumexp(-1).square()[targets >= 0].mean()
    (loss + 0.01 * squared_log_z).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    fit(ours, [ids])
    assert ours.latest["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert ours.latest["train/z_loss"] == pytest.approx(squared_log_z.item(), rel=1e-5)
    assert ours.latest["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert "train/z_loss" not in fit(module(), [ids]).latest


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_callbacks_see_the_gradient_once_a_step_whole_and_before_clipping(module, optimizer, monkeypatch):
    measured = []
    norm = gradients._norm

    def counted(part):
        measured.append(part)
        return norm(part)

    monkeypatch.setattr(gradients, "_norm", counted)
    ours = module(clip_grad_norm=1e-3, micro_windows=2, log_every=2)
    ours.optimizer_config = OptimizerConfig(name=optimizer, lr=0.01)
    fit(ours, [windows(8, seed) for seed in range(2)], callbacks=[GradientNorms()])
    parts = {name: value for name, value in ours.latest.items() if name.startswith("train/grad_norm/")}
    assert len(measured) == len(parts) == 5  # three blocks, embedding and head, in the one step that is logged
    whole, of_parts = ours.latest["train/grad_norm"], math.hypot(*parts.values())
    assert whole > 100 * 1e-3  # so that clipping would show
    assert 0.7 * whole < of_parts < whole  # the last norm's gain is in no part


def test_k_at_each_moment(module):
    sites = {"k": None, "k_ratio": 0.25, "sites": ["mlp_neurons", "resid_post_mlp"]}
    dense = module(sites)  # widths 64 and 16, so 16 and 4 at the end
    assert dense.k_at(0.0) == [64, 16, 64, 16]
    assert dense.k_at(0.25) == [40, 10, 40, 10]
    assert dense.k_at(0.5) == dense.k_at(1.0) == dense.final_k == [16, 4, 16, 4]
    linear = Schedule("linear", 0.0, 0.5)
    assert module(sites, k_schedule=every_block(linear, 12)).k_at(0.25) == [14, 8, 14, 8]
    assert module({"k": [2, 6]}, k_schedule=every_block(linear, 16)).k_at(0.25) == [9, 11]
    later = KSchedule(((linear, 12), (Schedule("linear", 0.25, 0.5), None)))  # block by block
    assert module(sites, k_schedule=later).k_at(0.25) == [14, 8, 64, 16]
    assert module(sites, k_schedule=later).k_at(0.5) == [16, 4, 40, 10]


def test_a_step_its_validation_and_its_checkpoint_have_the_same_k(module):
    seen = []

    class Spy(TopKLM):
        def training_step(self, *args):
            seen.append(("train", self.global_step + 1, [int(site.k) for site in self.model.sites]))
            return super().training_step(*args)

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            checkpoint = {}
            self.on_save_checkpoint(checkpoint)
            seen.append(("checkpoint", self.global_step, checkpoint["topklm"]["k"]))

    spy = module(k_schedule=every_block(Schedule("linear")))
    spy.__class__ = Spy
    fit(spy, [windows(8, seed) for seed in range(6)], [(windows(2), torch.zeros(2, 24, dtype=torch.int64))])
    assert [k for what, _, (k, _) in seen if what == "train"] == [round(16 - 12 * step / 10) for step in range(1, 7)]
    assert seen[-1] == ("checkpoint", *seen[-2][1:])
    assert spy.latest["val/loss"] != spy.latest["val/loss_final_k"]


def test_the_last_step_has_the_final_k_and_some_rate(module):
    last = module(k_schedule=every_block(Schedule("linear")), lr_schedule=Trapezoid(0.1, 0.5, "linear"))
    last._trainer = SimpleNamespace(global_step=9)
    last.on_train_batch_start(windows(8), 0)
    assert [int(site.k) for site in last.model.sites] == [4, 4]
    assert last.lr_factor == pytest.approx(0.1)  # 0.05 before the end, of 0.5
    last._trainer = SimpleNamespace(global_step=0)
    last.on_train_batch_start(windows(8), 0)
    assert last.lr_factor == pytest.approx(0.5)


def test_validation_is_a_mean_over_tokens_and_bytes(module):
    """Of batches of unequal size, with padding, by source; and at the final k."""
    ours = module(val_sources=["en", "es"])
    batches = [
        (windows(3, 1), torch.arange(72).view(3, 24) % 2),
        (windows(1, 2, padded=True), torch.ones(1, 24).long()),
    ]
    fit(ours, [windows(8)], batches)
    nats, text_bytes, from_es = [], [], []
    with torch.no_grad():
        for ids, sources in batches:
            log_p = ours.model.eval()(ids[:, :-1].clamp_min(0)).log_softmax(-1)
            for row in range(len(ids)):
                for t in range(24):
                    target = int(ids[row, t + 1])
                    if target >= 0:
                        nats.append(-log_p[row, t, target].item())
                        text_bytes.append(target % 7)
                        from_es.append(int(sources[row, t]))
    found = ours.latest
    assert found["val/tokens"] == len(nats) < 96
    assert found["val/loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found["val/bpb"] == pytest.approx(sum(nats) / sum(text_bytes) / math.log(2), rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    of_es = [n for n, source in zip(nats, from_es, strict=True) if source]
    assert found["val/loss/es"] == pytest.approx(sum(of_es) / len(of_es), rel=1e-5)
    with ours.model.using_k([4, 4]):
        ids = torch.cat([ids for ids, _ in batches])
        final = ours.model.token_losses(ids[:, :-1].clamp_min(0), ids[:, 1:])
    assert found["val/loss_final_k"] == pytest.approx(final.sum().item() / len(nats), rel=1e-5)


@pytest.mark.parametrize(("loss", "perplexity"), [(800.0, math.inf), (math.inf, math.inf), (700.0, math.exp(700))])
def test_a_loss_beyond_all_bounds_is_still_reported(module, loss, perplexity):
    ours = module()
    ours.model.token_losses = lambda ids, targets, documents=None: torch.full(targets.shape, loss)
    fit(ours, [windows(8)], [(windows(2), torch.zeros(2, 24, dtype=torch.int64))])
    assert ours.latest["val/loss"] == loss
    assert ours.latest["val/perplexity"] == pytest.approx(perplexity)


def test_what_it_saves_it_takes_up(module):
    ours, checkpoint = fit(module(), [windows(8)]), {}
    ours.on_save_checkpoint(checkpoint)
    assert checkpoint["topklm"]["k"] == [14, 14]
    json.dumps(checkpoint)
    other = module()
    other.on_load_checkpoint(checkpoint)
    assert (other.latest, other.validated_at) == (ours.latest, -1)
    assert build_optimizer(other.model, other.optimizer_config).param_groups[0]["peak_lr"] == 0.01
