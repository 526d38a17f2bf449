"""A model whose parameters are sharded over two processes (FSDP2) trains as one that is whole."""

import multiprocessing

import torch
from torch import distributed as dist

from topklm.model import ModelConfig, TopKConfig, TopKTransformer


def losses(model: TopKTransformer, ids_bl: torch.Tensor) -> torch.Tensor:
    """Of three steps of plain gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = []
    for _ in range(3):
        loss = model.loss(ids_bl[:, :-1], ids_bl[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.detach())
    return torch.stack(seen)


def small_model() -> TopKTransformer:
    torch.manual_seed(0)
    topk = TopKConfig(k=4, sites=("resid_post_attn", "mlp_neurons", "resid_post_mlp"))
    return TopKTransformer(ModelConfig(37, d_model=16, n_layers=2, n_heads=2, seq_len=8, topk=topk))


def batch() -> torch.Tensor:
    return torch.randint(0, 37, (4, 9), generator=torch.Generator().manual_seed(1))


def on_a_rank(rank: int, store: str) -> tuple[torch.Tensor, list[int]]:
    """Losses and firings over both ranks; the second rank's process needs them no further."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        model = small_model()
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        register_fsdp_forward_method(model, "loss")
        seen = losses(model, batch()[2 * rank : 2 * rank + 2])
        dist.all_reduce(seen)
        fired = torch.stack([site.fired_d.sum() for site in model.sites])
        dist.all_reduce(fired)
    finally:
        dist.destroy_process_group()
    return seen / 2, fired.tolist()


def test_two_processes_train_as_one(tmp_path):
    store = str(tmp_path / "store")
    other = multiprocessing.get_context("spawn").Process(target=on_a_rank, args=(1, store))
    other.start()
    try:
        seen, fired = on_a_rank(0, store)
        other.join(60)
    finally:
        other.kill()  # what waits for a rank that failed would wait for long; no news to one that has ended
    assert other.exitcode == 0
    whole = small_model()
    torch.testing.assert_close(seen, losses(whole, batch()), rtol=1e-4, atol=0)
    assert fired == [int(site.fired_d.sum()) for site in whole.sites]
