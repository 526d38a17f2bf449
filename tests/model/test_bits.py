"""A bit per entry: packed as said, and unpacked as packed."""

import pytest
import torch

from topklm.model.bits import pack, packed_width, unpack


@pytest.mark.parametrize("d", [1, 7, 8, 9, 100])
def test_entry_i_is_bit_i(d):
    kept = torch.rand(6, d) < 0.5
    packed = pack(kept)
    assert packed.shape == (6, packed_width(d))
    for row, flags in zip(packed.tolist(), kept.tolist(), strict=True):
        assert int.from_bytes(bytes(row), "little") == sum(flag << i for i, flag in enumerate(flags))
    assert torch.equal(unpack(packed, d), kept)
