"""The benchmark command: every contender runs, and the table and the file say the same."""

import json


def test_step(command, tmp_path):
    process = command("scripts/benchmark.py", "what=step", "debug=smoke", "rounds=2", "hydra.run.dir=out")
    found = json.loads((tmp_path / "out" / "step.json").read_text())
    contenders = [row["contender"] for row in found["rows"]]
    assert contenders == ["topk", "topk, no telemetry", "dense twin", "dense twin", "transformers Llama"]
    assert all(row["tokens/s"] > 0 for row in found["rows"])
    assert all(finding in process.stdout for finding in found["findings"])
    assert "telemetry adds" in found["findings"][0]


def test_an_unknown_benchmark(command):
    process = command("scripts/benchmark.py", "what=speed", check=False)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1] == "Error: what=speed: choose from step, data, decode."
