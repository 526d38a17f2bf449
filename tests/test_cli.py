"""Every command: paths as they are typed, one line on stderr for a mistake, a traceback for a bug, and exit codes."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from topklm import cli
from topklm.errors import run_argument

AWKWARD = [
    "a=b",
    "0_debug=smoke_topk.k=4",
    "with space",
    "(1)",
    "ü/日本",
    "it's",
    'say "x"',
    "a,b",
    "[0,2]",
    "2026",
    "1e3",
]
AWKWARD += ["true", "back\\slash", "{x}", "range(1,3)", "a:b", "-m", "#1", "end\\"]


def meant(argument):
    """The value that Hydra reads from an argument."""
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("path", AWKWARD)
def test_a_path_is_read_as_it_is_typed_or_quoted(path):
    (once,) = cli._arguments([f"hydra.run.dir={path}"])
    assert meant(once) == path
    assert cli._arguments([once]) == [once]  # Lightning starts its further processes with these arguments


@pytest.mark.parametrize("path", AWKWARD)
def test_a_command_to_continue_can_be_pasted(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(path).mkdir(parents=True)
    (Path(path) / "config.yaml").touch()
    (argument,) = shlex.split(run_argument(path))
    (read,) = cli._arguments([argument])
    assert meant(read) == path


def test_home(monkeypatch):
    """A shell leaves it as it is after the equals sign."""
    monkeypatch.setenv("HOME", "/home/me")
    (once,) = cli._arguments(["data.cache_dir=~/cache"])
    assert meant(once) == "/home/me/cache"


def test_what_hydra_understands_stays_understood():
    assert meant(cli._arguments(["hydra.run.dir='a b'"])[0]) == "a b"
    assert meant(cli._arguments(["hydra.run.dir=a\\=b"])[0]) == "a=b"
    assert meant(cli._arguments(["hydra.run.dir=runs/${now:%Y}"])[0]) == "runs/${now:%Y}"
    assert cli._arguments(["run=null", "topk.k=4"]) == ["run=null", "topk.k=4"]
    sweep = ["data.cache_dir=a,b", "-m", "hydra.sweep.dir=a b"]
    assert cli._arguments(sweep) == ["-m", "data.cache_dir=a,b", "hydra.sweep.dir='a b'"]


def test_folders_of_runs_are_one_path_or_a_list():
    assert meant(cli._arguments(["sweep=sweeps/topk.k=4"])[0]) == "sweeps/topk.k=4"
    assert meant(cli._arguments(["sweep=[a,b/c]"])[0]) == ["a", "b/c"]


def test_two_runs_to_continue(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        (Path(name) / "config.yaml").touch()
    with pytest.raises(SystemExit):
        cli._arguments(["run=a", "resume=b"])
    assert capsys.readouterr().err == "Error: run and resume mean the same: give one of them.\n"
    assert len(cli._arguments(["run=a", "resume=a"])) == 2


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("topk.kk", [], "topk.k"),
        ("modle", [], "model"),
        ("training.step", [], "training.steps"),
        ("lr", [], "optimizer.lr"),
        ("data.foo", [], None),
        ("data.paths", [], None),
        ("data.path", ["data=files"], "data.paths"),
        ("topk.kk", ["topk=nonsense"], None),
    ],
)
def test_the_setting_that_was_meant(monkeypatch, name, choices, expected):
    monkeypatch.setattr(sys, "argv", ["train.py", *choices, "seed=1"])
    cli.register_resolvers()
    assert cli._similar_setting(name, "train") == expected


def test_the_name_of_a_sweeps_job():
    assert cli.job_name(["seed=1", "data.cache_dir=/a/b"]) == "data.cache_dir=-a-b_seed=1"
    assert cli.job_name([]) == "default"
    assert cli.job_name(["seed=1", "logger=csv", "logger.plots=false"]) == "seed=1"
    long = [cli.job_name(["x=" + "日" * 100 + end]) for end in "ab"]
    assert max(len(name.encode()) for name in long) <= cli.MAX_NAME
    assert long[0] != long[1]


def test_dense_twins_share_a_name_whatever_k_they_do_not_have():
    common = ["topk=none", "model.d_model=64"]
    names = {cli.job_name([*common, f"topk.k={k}", "k_schedule.length=0.3"]) for k in (4, 8)}
    assert names == {"model.d_model=64_topk=none"}
    assert cli.job_name(["topk=none", "topk.k=4", "topk.sites=[mlp_neurons]"]).count("_") >= 2


SCRIPT = """
import sys, time, warnings
from topklm.cli import command
from topklm.errors import UserError

@command("train")
def main(cfg):
    warnings.warn("a library's warning")
    if cfg.seed == 2:
        raise UserError("seed=2:\\n  not this one.")
    if cfg.seed == 3:
        raise ValueError("a bug")
    if cfg.seed == 4:
        raise OSError("a bug")
    if cfg.seed == 5:
        print("waiting", flush=True)
        time.sleep(60)
    return 1.0

main()
"""


@pytest.fixture
def call(tmp_path):
    """call("seed=2") runs a small command; returns the process, finished unless ``wait=False``."""
    (tmp_path / "small.py").write_text(SCRIPT)

    def run(*arguments, wait=True, **env):
        process = subprocess.Popen(
            [sys.executable, "small.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(cli.CONF.parent), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


def test_a_command_that_goes_well(call):
    process = call("hydra.run.dir=it's (1) ü")
    assert (process.returncode, process.stderr) == (0, "")
    assert "a library's warning" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seed=2"], "seed=2: not this one."),
        (["sed=2"], "there is no setting sed: did you mean seed?"),
        (["topk=null"], "there is no topk=null: choose from default, none."),
        (["model=[nano,x]"], "Could not load 'model/x'.\n"),
        (["topk.k=["], "topk.k=[ is not NAME=VALUE (no viable alternative at input '['): quote special characters."),
        (["topk.k=ü"], "topk.k=ü is not NAME=VALUE: quote special characters."),
        (["hydra.run.dir=small.py"], "small.py cannot be made (File exists): choose another place"),
        (["hydra.run.dir=small.py/x"], "small.py/x cannot be made (Not a directory): choose another place"),
        (["-m", "hydra.sweep.dir=small.py", "seed=1,2"], "small.py cannot be made (File exists)"),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["-m", "seed=1,2,2"], "2 of the sweep's jobs failed. seed=2: not this one."),
    ],
)
def test_a_mistake_is_one_line(call, arguments, sentence):
    process = call(*arguments)
    assert process.returncode == 1
    assert process.stderr.startswith("Error: ")
    assert process.stderr.count("\n") == 1
    assert process.stderr.endswith("\n")
    assert sentence in process.stderr


def test_a_failing_job_is_told_and_the_sweep_goes_on(call):
    process = call("-m", "seed=2,1")
    assert "This job failed: seed=2: not this one." in process.stdout
    assert process.stdout.count("a library's warning") >= 2


@pytest.mark.parametrize("seed", [3, 4])
def test_a_bug_is_a_traceback(call, seed):
    process = call(f"seed={seed}")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert process.stderr.strip().endswith("Error: a bug")


@pytest.mark.parametrize("full", ["0", "1"])
def test_tracebacks_on_demand(call, full):
    assert "Traceback" not in call("seed=2", HYDRA_FULL_ERROR=full, TOPKLM_TRACEBACK="0").stderr
    assert "raise UserError" in call("seed=2", HYDRA_FULL_ERROR=full, TOPKLM_TRACEBACK="1").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_130(call, number):
    process = call("seed=5", wait=False)
    while process.stdout.readline() not in ("waiting\n", ""):
        pass
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "Interrupted.\n")


def test_help_lists_what_the_command_takes():
    lines = cli.groups("train").splitlines()
    assert "model: large, medium, nano, small, tiny" in lines
    assert not any(line.startswith(("study:", "shared:")) for line in lines)
    assert cli.groups("study") == "study: dead_neurons, recipe\n"
