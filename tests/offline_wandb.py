"""Reads back what W&B wrote offline."""

import json
import os
import subprocess
import sys


def records(run):
    """All records of the W&B run in the folder ``run``."""
    (log,) = run.glob("run-*.wandb")
    process = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)],
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline"},
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
