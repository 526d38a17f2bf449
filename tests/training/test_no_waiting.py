"""Between logged steps nothing reads a tensor on the host, which on a GPU would wait for all work at hand."""

import traceback
from pathlib import Path

import lightning as L
import pytest
import torch

from topklm.callbacks import DeadNeurons, Garbage, GradientNorms, Interrupt, SelectionBias, Sparsity, Throughput
from topklm.model import ModelConfig, TopKConfig
from topklm.schedules import KSchedule, Schedule, Trapezoid
from topklm.training.module import TopKLM
from topklm.training.sections import OptimizerConfig

READERS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
# The operator reads k where the tensors are on a CPU, as it must there.
OPERATOR = "activation.py"


class Loader(torch.utils.data.DataLoader):
    wait_seconds = 0.0


class Watch(L.Callback):
    """Which step is at work."""

    step = 0

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.step = pl_module.global_step + 1


@pytest.mark.parametrize("checkpointing", ["none", "block_sparse"])
def test_nothing_is_read_between_logged_steps(monkeypatch, checkpointing):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "d_model": 64, "n_layers": 3, "n_heads": 2, "seq_len": 24}
    module = TopKLM(
        ModelConfig(**shape, topk=TopKConfig(k=4, sites=("resid_post_attn", "mlp_neurons", "resid_post_mlp"))),
        OptimizerConfig(name="muon", lr=0.01),
        steps=8,
        tokens_per_step=4 * 24,
        log_every=4,
        k_schedule=KSchedule(((Schedule("linear", 0.0, 0.5), None),) * 2),
        lr_schedule=Trapezoid(0.1, 0.5, "cosine"),
        micro_windows=2,
        clip_grad_norm=0.5,
        z_loss=1e-4,
        byte_lengths=torch.arange(97) % 7,
        eot_id=3,
        padded=True,
        val_sources=[""],
        run_config={},
    )
    module.model.set_checkpointing(checkpointing)
    watch, read = Watch(), {}

    def guard(name):
        original = getattr(torch.Tensor, name)

        def reading(self, *args, **kwargs):
            # Here and nowhere else, whoever calls: ours, Lightning or the optimizer.
            frames = traceback.extract_stack()
            if watch.step and not any(Path(frame.filename).name == OPERATOR for frame in frames):
                read.setdefault(watch.step, []).append((name, [f"{f.filename}:{f.lineno}" for f in frames[-4:-1]]))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, reading)

    for name in READERS:
        guard(name)
    telemetry = (Sparsity(), DeadNeurons(window_tokens=96), GradientNorms(), SelectionBias(every_n_steps=4))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=8,
        callbacks=[watch, Interrupt(), Throughput(), Garbage(), *telemetry],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [torch.randint(0, 97, (4, 25)) for _ in range(8)]
    trainer.fit(module, Loader(batches, batch_size=None))
    assert set(read) == {4, 8}, {step: read[step] for step in read if step % 4}
    assert {"train/loss", "train/z_loss", "sparsity/dead_fraction/layer_00"} <= module.latest.keys()
