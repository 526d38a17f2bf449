from types import SimpleNamespace

import pytest
import torch

from topklm.model import ModelConfig, TopKConfig, TopKTransformer
from topklm.training.optim import forget


class Module:
    """As much of a module as callbacks ask for (``base.Watched``), with the steps taken set by hand."""

    device = torch.device("cpu")

    def __init__(self, model, steps=100, tokens_per_step=48, log_every=1):
        self.model, self.steps, self.tokens_per_step, self.log_every = model, steps, tokens_per_step, log_every
        self.global_step, self.eot_id = 0, None
        self.loss = self.grad_norm = torch.tensor(1.0)
        self.row, self.latest, self.rows, self.histograms = {}, {}, [], {}
        self.optimizer = None

    def is_logged(self, step):
        return step % self.log_every == 0 or step == self.steps

    @property
    def is_log_step(self):
        return self.is_logged(self.global_step)

    def add_metrics(self, metrics):
        self.row.update(metrics)

    def add_histogram(self, name, counts, edges):
        self.histograms[name] = (counts, edges)

    def forget_gradients(self, parameter, where):
        forget(self.optimizer, parameter, where)

    def log_row(self):
        if self.row:
            self.latest.update(self.row)
            self.rows.append((self.global_step, self.row))
            self.row = {}


def silence(watched, neuron):
    """Makes a neuron of the first site so small that TopK never keeps it; nothing else can make it grow."""
    model = watched.model
    with torch.no_grad():
        model.embed.weight[:, neuron] = -4.0
        for projection in (model.blocks[0].attn.out, model.blocks[0].mlp.down):
            projection.weight[neuron] = 0.0


def train(watched, trainer, callbacks, steps, start=False):
    """A training of its own, in which the callbacks are told what Lightning tells them. Yields after each step the
    neurons that fired at the first site."""
    if watched.optimizer is None:
        watched.optimizer = torch.optim.AdamW(watched.model.parameters(), lr=0.01, weight_decay=0.0)
    if start:
        for callback in callbacks:
            callback.setup(trainer, watched, "fit")
            callback.on_train_start(trainer, watched)
    site = watched.model.sites[0]
    for _ in range(steps):
        for callback in callbacks:
            callback.on_train_batch_start(trainer, watched, None, watched.global_step)
        generator = torch.Generator().manual_seed(watched.global_step)
        ids = torch.randint(0, 97, (2, 25), generator=generator)
        fired = site.fired_d.clone()
        watched.model.loss(ids[:, :-1], ids[:, 1:]).backward()
        fired = site.fired_d - fired
        watched.optimizer.step()
        watched.optimizer.zero_grad()
        watched.global_step += 1
        for callback in callbacks:
            callback.on_train_batch_end(trainer, watched)
        watched.log_row()
        yield fired > 0


@pytest.fixture
def module():
    """module(steps=..., topk={...}) around a model of two TopK blocks and a dense one."""

    def make(topk=None, vocab_size=97, tied=False, **options):
        torch.manual_seed(0)
        topk_config = TopKConfig(**{"k": 3, **(topk or {})})
        shape = {"vocab_size": vocab_size, "d_model": 16, "n_layers": 3, "n_heads": 2, "seq_len": 24, "tied": tied}
        return Module(TopKTransformer(ModelConfig(**shape, topk=topk_config)), **options)

    return make


@pytest.fixture
def trainer(tmp_path):
    """trainer(world_size=2, reduce=...): a stand-in whose strategy reduces with the given function."""

    def make(world_size=1, global_rank=0, reduce=None, **options):
        strategy = SimpleNamespace(
            reduce=lambda tensor, reduce_op: reduce(tensor, reduce_op),
            reduce_boolean_decision=lambda decision, all: decision,
        )
        facts = {
            "world_size": world_size,
            "global_rank": global_rank,
            "strategy": strategy,
            "should_stop": False,
            "val_check_interval": 10,
            "limit_val_batches": 1.0,
            "state": SimpleNamespace(fn="fit"),
            "default_root_dir": tmp_path,
            "loggers": [],
            "callbacks": [],
            "train_dataloader": SimpleNamespace(wait_seconds=0.0),
        }
        return SimpleNamespace(**{**facts, **options})

    return make
