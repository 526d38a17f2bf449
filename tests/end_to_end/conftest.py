"""Running the real commands as a user would, in a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of the embedded corpus for all commands."""
    return tmp_path_factory.mktemp("topklm-cache")


@pytest.fixture
def command(tmp_path, cache):
    """command("train.py", "topk.k=4", ...) runs it in an empty folder; returns the finished process."""

    def start(script, *arguments, check=True, wait=True, env=None):
        environment = {**os.environ, "TOPKLM_CACHE": str(cache), "COLUMNS": "120", **(env or {})}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if not wait:
            return process
        stdout, stderr = process.communicate(timeout=240)
        if check and process.returncode != 0:
            pytest.fail(f"{script} {' '.join(arguments)} ended with {process.returncode}\n{stdout}\n{stderr}")
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return start


@pytest.fixture
def train(command):
    """train("topk.k=4", ...): train.py with debug=smoke."""
    return lambda *overrides, **options: command("train.py", "debug=smoke", *overrides, **options)


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())
