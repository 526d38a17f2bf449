from types import SimpleNamespace

import pytest
import torch

from topklm.model import ModelConfig, TopKConfig, TopKTransformer


class Module:
    """As much of a module as callbacks ask for (``base.Watched``), with the steps taken set by hand."""

    device = torch.device("cpu")

    def __init__(self, model, steps=100, tokens_per_step=48, log_every=1):
        self.model, self.steps, self.tokens_per_step, self.log_every = model, steps, tokens_per_step, log_every
        self.global_step, self.eot_id = 0, None
        self.loss = self.grad_norm = torch.tensor(1.0)
        self.row, self.latest, self.rows, self.histograms = {}, {}, [], {}

    def is_logged(self, step):
        return step % self.log_every == 0 or step == self.steps

    @property
    def is_log_step(self):
        return self.is_logged(self.global_step)

    def add_metrics(self, metrics):
        self.row.update(metrics)

    def add_histogram(self, name, counts, edges):
        self.histograms[name] = (counts, edges)

    def log_row(self):
        if self.row:
            self.latest.update(self.row)
            self.rows.append((self.global_step, self.row))
            self.row = {}


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
            "train_dataloader": SimpleNamespace(wait_seconds=0.0),
        }
        return SimpleNamespace(**{**facts, **options})

    return make
