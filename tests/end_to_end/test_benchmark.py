"""The benchmark command: every contender runs, and the table and the file say the same."""

import json

import pytest

from topklm.benchmarks.run import _checked
from topklm.errors import UserError


def test_step(command, tmp_path):
    process = command("scripts/benchmark.py", "what=step", "debug=smoke", "rounds=2", "hydra.run.dir=out")
    found = json.loads((tmp_path / "out" / "step.json").read_text())
    ours = ["topk", "topk, no telemetry", "dense twin"]
    settings = {}
    for row in found["rows"]:
        settings.setdefault(row["settings"], []).append(row["contender"])
    assert next(iter(settings)).startswith("muon, ")
    assert list(settings)[-1] == "adamw, 32-true"
    for number, contenders in enumerate(settings.values()):
        assert contenders[:4] == [*ours, "topk, every step logged" if number == 0 else "transformers Llama"]
    assert all(row["tokens/s"] > 0 for row in found["rows"])
    assert all(finding in process.stdout for finding in found["findings"])
    assert "telemetry adds" in found["findings"][0]
    litgpt = any(row["contender"] == "litgpt GPT" for row in found["rows"])
    assert litgpt or any(finding.startswith("litgpt GPT is left out") for finding in found["findings"])
    assert (tmp_path / "out" / "step.png").exists()


def test_topk(command, tmp_path):
    """Every contender has both passes for every shape, and wrong shapes are refused."""
    shapes = "shapes=[[64,100,10],[32,8,8]]"
    command("scripts/benchmark.py", "what=topk", shapes, "trainer=cpu", "rounds=2", "hydra.run.dir=out")
    rows = json.loads((tmp_path / "out" / "topk.json").read_text())["rows"]
    contenders = ["reference", "threshold", "statistical", "torch.topk + scatter", "kthvalue threshold", "copy"]
    assert [row["contender"] for row in rows] == 4 * contenders
    assert [(row["tokens"], row["d"], row["k"]) for row in rows[::12]] == [(64, 100, "d/10"), (32, 8, "d/1")]
    assert [row["pass"] for row in rows[::6]] == ["forward", "both"] * 2
    assert all(row["of copy"] == 1 for row in rows if row["contender"] == "copy")
    help_ = "give a list of [tokens, d, k] with 1 <= k <= d, as in shapes=[[65536,1024,128]]."
    for shapes, wrong in (("[[64,8,9]]", "shapes has [64, 8, 9]"), ("[[64,8.5,2]]", "shapes has [64, 8.5, 2]")):
        process = command("scripts/benchmark.py", "what=topk", f"shapes={shapes}", "trainer=cpu", check=False)
        assert process.returncode == 1
        assert process.stderr.strip().splitlines()[-1] == f"Error: {wrong}: {help_}"
    for shapes in (5, [], [5], [["a", 2, 1]], [[1, 2]]):
        with pytest.raises(UserError, match="give a list of"):
            _checked(shapes)


def test_an_unknown_benchmark(command):
    process = command("scripts/benchmark.py", "what=speed", check=False)
    assert process.returncode == 1
    assert (
        process.stderr.strip().splitlines()[-1]
        == "Error: what=speed: choose from step, compile, scaling, topk, memory, decode, data."
    )
