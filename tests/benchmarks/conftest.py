import pytest

from tests.composing import composed
from topklm.benchmarks.run import SETTINGS
from topklm.training.config import RunConfig

TINY = ("debug=smoke", "trainer=cpu", "trainer.precision=32", "model.seq_len=32", "training.batch_tokens=64")


@pytest.fixture
def config():
    """config("topk.k=4", ...): a tiny run's, as the benchmark command composes it."""

    def make(*overrides):
        return RunConfig.from_hydra(composed(*TINY, *overrides, name="benchmark"), own=SETTINGS)

    return make
