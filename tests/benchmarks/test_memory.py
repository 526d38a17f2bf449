"""What is measured of memory, beside what must be true of it."""

import pytest
import torch

from tests.composing import checked
from topklm.benchmarks.memory import MB, Usage, _cpu, memory_benchmark


def test_the_meter_sees_what_is_allocated_and_released():
    found = Usage()
    with _cpu(found) as forward_is_done:
        kept = torch.ones(250_000)
        passing = kept * 2
        del passing
        forward_is_done()
        kept = torch.cat((kept, kept))  # the old one is there until the new one is
    assert found.held == pytest.approx(1e6, abs=1e4)
    assert found.peak == pytest.approx(3e6, abs=1e4)
    assert kept.nbytes == 2e6


def test_every_way_of_checkpointing():
    tokens, d, k, blocks = 512, 32, 4, 3
    config = checked("debug=smoke", f"model.n_layers={blocks}", f"topk.k={k}", "trainer.precision=32", "trainer=cpu")
    result = memory_benchmark(config, rounds=1)
    rows = {row["contender"]: row for row in result.rows}
    held = [rows[how]["held MB"] for how in ("none", "selective", "block", "block_sparse")]
    assert held == sorted(held, reverse=True)
    assert held[0] > 2 * held[2]
    dense = (blocks - 1) * tokens * d * 4 / MB
    assert [rows[how]["boundary MB"] for how in ("none", "selective", "block")] == [dense] * 3
    packed = (blocks - 1) * tokens * (k * 4 + d // 8) / MB
    assert rows["block_sparse"]["boundary MB"] == pytest.approx(packed)
    saved = held[2] - held[3]  # what the allocator saw: the dense ones are gone
    assert saved == pytest.approx(dense - packed, rel=0.05)
    assert all(row["peak MB"] > row["held MB"] and row["ms per step"] > 0 for row in rows.values())
