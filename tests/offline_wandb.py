"""Reads back what W&B wrote offline."""

import json
import os
import subprocess
import sys


def records(run):
    """All records of the W&B run in the folder ``run``."""
    output = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "WANDB_MODE": "offline"},
    ).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
