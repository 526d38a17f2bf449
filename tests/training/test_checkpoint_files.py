"""Checkpoints: whole or absent, plain data only, and a sentence for what is not one."""

import os

import pytest
import torch

from topklm.errors import UserError
from topklm.training.checkpoint_files import load_checkpoint, save_checkpoint

TOPKLM = {"version": "0", "config": {}, "latest": {}, "validated_at": -1}
CONTENT = {"topklm": TOPKLM, "state_dict": {"w": torch.arange(1000.0)}, "optimizer_states": [], "global_step": 3}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    save_checkpoint(CONTENT, path)
    return path


def test_round_trip(path):
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_failed_write_leaves_the_old_one(path, monkeypatch):
    def full(_, target):
        target.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"Cannot write .*last.ckpt.*checkpoints before it are untouched.*run="):
        save_checkpoint({"topklm": {}}, path)
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk(path, monkeypatch):
    """The real thing: a device that is always full takes the place of the temporary file."""
    real_save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, target: real_save(content, "/dev/full"))
    with pytest.raises(UserError, match="Cannot write"):
        save_checkpoint(CONTENT, path)
    assert load_checkpoint(path)["topklm"] == TOPKLM


@pytest.mark.parametrize("cut", [0, 10, 700, -1])
def test_truncated(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="is damaged or not a topklm checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"topklm": {}}, CONTENT | {"topklm": {"config": {}}}, {"topklm": TOPKLM}])
def test_parts_are_missing(path, content):
    torch.save(content, path)
    with pytest.raises(UserError, match="is damaged or not a topklm checkpoint"):
        load_checkpoint(path)


def test_foreign(path, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="checkpoint of another program"):
        load_checkpoint(tmp_path / "foreign.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.ckpt")
    with pytest.raises(UserError, match="is damaged or not a topklm checkpoint"):
        load_checkpoint(tmp_path / "code.ckpt")
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
