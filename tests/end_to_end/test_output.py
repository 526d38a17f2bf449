"""Commands in a pipe whose reader goes away."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import summary
from tests.end_to_end.launching import ROOT


@pytest.fixture
def first_line(cache, tmp_path):
    """first_line("train.py", ...) reads one line of what the command prints: its exit code, that line, and stderr."""

    def read(script, *arguments):
        ours = shlex.join([sys.executable, str(ROOT / script), *arguments])
        done = subprocess.run(
            ["bash", "-c", f"{ours} | head -1; exit $PIPESTATUS"],
            cwd=tmp_path,
            env={**os.environ, "TOPKLM_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout, done.stderr

    return read


def test_training_stops_with_a_checkpoint(first_line, train, tmp_path):
    settings = ("debug=smoke", "training.steps=40", "training.eval_every=5", "logger.plots=false")
    code, line, stderr = first_line("train.py", "hydra.run.dir=run", *settings)
    assert code == 141
    assert line.count("\n") == 1
    stopped = summary(tmp_path / "run")
    assert stopped["status"] == "interrupted"
    assert 0 < stopped["steps"] < 40
    assert stderr == (
        f"Stopped, as nothing reads its output any more, after step {stopped['steps']} of 40. Continue with run=run\n"
    )
    train("run=run")
    assert summary(tmp_path / "run")["steps"] == 40


def test_a_short_command_ends_without_a_word(first_line):
    code, line, stderr = first_line("train.py", "--cfg", "job")
    assert (code, stderr) in [(141, ""), (0, "")]  # 0 where all of it fitted into the pipe
    assert line.count("\n") == 1
