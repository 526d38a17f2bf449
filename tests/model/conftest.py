import pytest
import torch

from topklm.model import ModelConfig, TopKConfig, TopKTransformer


@pytest.fixture
def build():
    """A small model: build(d_model=..., topk={...})."""

    def make(topk: dict | None = None, seed: int = 0, **changes) -> TopKTransformer:
        torch.manual_seed(seed)
        sizes = {"vocab_size": 97, "d_model": 32, "n_layers": 3, "n_heads": 4, "seq_len": 24, **changes}
        return TopKTransformer(ModelConfig(topk=TopKConfig(**(topk or {})), **sizes))

    return make


@pytest.fixture
def ids():
    return torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))
