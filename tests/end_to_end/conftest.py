"""Running the real commands as a user would, in a small size."""

import functools
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.launching import Command, stop_all


def launch(folder, cache, script, *arguments, check=True, wait=True, env=None, largest_file=None):
    """Runs a script in ``folder``; returns the finished process, or with ``wait=False`` the one just started."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # another test's
    env = {**inherited, "TOPKLM_CACHE": str(cache), "COLUMNS": "120", **(env or {})}
    process = Command(script, arguments, folder, env, largest_file)
    if not wait:
        return process
    stdout, stderr = process.communicate(timeout=240)
    if check and process.returncode != 0:
        pytest.fail(f"{script} {' '.join(arguments)} ended with {process.returncode}\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running():
    yield
    stop_all()


def launch_train(folder, cache, *overrides, **options):
    """train.py with debug=smoke, without pictures, which take half of so short a run, unless overrides ask for them. A
    run that continues keeps its own config."""
    goes_on = any(override.startswith(("run=", "resume=")) for override in overrides)
    pictures = [] if "logger.plots=true" in overrides else ["logger.plots=false"]
    return launch(folder, cache, "train.py", *overrides, *([] if goes_on else ["debug=smoke", *pictures]), **options)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of the embedded corpus for all commands."""
    return tmp_path_factory.mktemp("topklm-cache")


@pytest.fixture
def command(tmp_path, cache):
    """command("scripts/benchmark.py", "what=step", ...) runs it in an empty folder."""
    return functools.partial(launch, tmp_path, cache)


@pytest.fixture
def train(tmp_path, cache):
    """train("topk.k=4", ...) runs a small training in an empty folder."""
    return functools.partial(launch_train, tmp_path, cache)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cache):
    """A finished run with k=4: the process, and the run directory, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    return launch_train(folder, cache, "hydra.run.dir=run", "topk.k=4", "logger.plots=true"), folder / "run"


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())
