"""What a study is made of, and how its jobs are run: with a small command in the place of train.py."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from tests.composing import CONF, composed
from tests.training.test_init_from import write_run
from topklm.errors import UserError
from topklm.reports import study as study_module
from topklm.reports.study import Study, run_study

TRAIN = """
import json, pathlib, signal, sys, time
place, *overrides = sys.argv[1:]
run = pathlib.Path(place.partition("=")[2])
run.mkdir(parents=True, exist_ok=True)
with open(run / "calls.txt", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if "topk.k=8" in overrides and not (run / "again").exists():
    (run / "again").touch()
    print("Error: out of luck.", file=sys.stderr)
    sys.exit(1)
from tests.composing import composed
from topklm.training.init_from import with_origin
from topklm.training.rundir import RunDirectory
directory = RunDirectory(run)
directory.write_config(with_origin(composed(*overrides), overrides))
k = 0 if "topk=none" in overrides else 1
layers = [{"topk": True, "dead_fraction": 0.1, "energy_kept": 0.5}] * k
loss = {"val_loss": 4.0 + k, "val_loss_final_k": 4.0 + k, "val_bpb": 2.0}
directory.write_summary({"status": "finished", **loss, "layers": layers})
"""


def study(*overrides):
    return Study.from_hydra(composed("study=recipe", *overrides, name="study"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(...) runs the recipe's study with these overrides and the small train.py; returns what it printed."""
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(study_module, "TRAIN", tmp_path / "train.py")
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    monkeypatch.chdir(tmp_path)

    def call(*overrides):
        printed = io.StringIO()
        try:
            run_study(study(*overrides), Console(file=printed, width=200))
        except UserError as error:
            printed.write(f"Error: {error}")
        return printed.getvalue()

    return call


def test_the_recipe():
    whole = study()
    assert len(whole.jobs) == 18 * 3
    assert [job.name for job in whole.jobs[:2]] == ["dense_1", "k32_1"]
    assert {job.seed for job in whole.jobs[:18]} == {1}  # a seed is done before the next one begins
    assert "topk.sites=[mlp_neurons]" in next(job for job in whole.jobs if job.variant == "k32_mlp").overrides
    some = study("only=[k32,dense]", "seeds=[3]", "dir=there", "overrides=['trainer=cpu']")
    assert [str(job.path) for job in some.jobs] == ["there/dense_3", "there/k32_3"]
    assert all("trainer=cpu" in job.overrides and "seed=3" in job.overrides for job in some.jobs)
    assert study("only=k32").reference == "dense"


def test_dead_neurons_are_counted_after_the_remedies_have_ended():
    """Neurons that a remedy alone made fire would be counted as alive."""
    for job in study("study=dead_neurons").jobs:
        cfg = composed(*job.overrides)
        ends = [cfg.callbacks[name].until for name in ("selection_bias", "revive")]
        ends.append(cfg.k_schedule.get("hold", 0) + cfg.k_schedule.get("length", 0))
        if cfg.topk.impl == "statistical":
            ends.append(cfg.topk.exact_from)
        after = max(ends)
        steps_left = cfg.training.steps - round(after * cfg.training.steps)
        assert cfg.callbacks.dead_neurons.window_tokens <= steps_left * cfg.training.batch_tokens


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("only=[k33]", r"only=\['k33'\]: give some of dense, k32"),
        ("seeds=[a]", r"seeds=\['a'\]: give a list of whole numbers"),
        ("seeds=[]", r"seeds=\[\]: give"),
        ("study.reference=twin", "study.reference=twin: give a variant"),
        ("study.variants.k32=topk.k", "study.variants.k32=topk.k: give a list of overrides"),
        ("+study.variants={8: ['topk.k=8']}", "study.variants=8: give each variant a name in words, without a slash"),
        ("+study.variants={a/b: ['topk.k=8']}", "study.variants=a/b: give each variant a name in words"),
        ("overrides=x", "overrides=x: give a list"),
        ("+steps=3", "steps=3: give a setting of a study"),
    ],
)
def test_a_mistake_names_the_override(override, message):
    with pytest.raises(UserError, match=f"^{message}"):
        study(override)


def test_no_study_is_named():
    with pytest.raises(UserError, match="^study=NAME is missing: choose from dead_neurons, recipe.$"):
        Study.from_hydra(composed(name="study"))


def test_settings_are_checked_before_anything_runs(run, tmp_path):
    printed = run("only=[dense,k32]", "study.variants.k32=['topk.k=999']")
    assert printed.startswith("Error: study.variants.k32: topk.k=999 is larger than the 256 neurons")
    assert not (tmp_path / "studies").exists()


def test_finished_jobs_are_skipped_failed_ones_tried_again_and_the_report_compares(run, tmp_path):
    jobs = ("only=[dense,k32,k8]", "seeds=[1]")
    first = run(*jobs)
    assert "3 jobs in studies/recipe: 0 finished already" in first
    assert "[3/3] k8_1: out of luck" in first
    assert "Error: 1 of the study's jobs failed; the same command tries them again. k8_1: out of luck." in first
    second = run(*jobs)
    assert "2 finished already" in second
    assert "[1/1] k8_1: finished in" in second
    folder = tmp_path / "studies" / "recipe"
    assert [len((folder / name / "calls.txt").read_text().splitlines()) for name in ("dense_1", "k32_1", "k8_1")] == [
        1,
        1,
        2,
    ]
    assert (folder / "logs" / "k8_1.txt").read_text() == "Error: out of luck.\n"
    report = (folder / "report" / "report.md").read_text()
    assert "| variant |" in report
    assert report.count("+25.00%") == 2  # 5 over the dense reference's 4


def test_the_report_is_of_the_whole_study_whatever_was_asked_for(run, tmp_path, make):
    run("only=[dense,k32]", "seeds=[1,2]")
    make("studies/recipe/k16_1", ["topk.k=16", "training.steps=3"], 4.0)  # another run
    printed = run("only=k64", "seeds=[2]")
    assert "1 jobs in studies/recipe: 0 finished already" in printed
    assert "k16_1 is left out of the report: studies/recipe/k16_1 already holds a run, with " in printed
    report = (tmp_path / "studies" / "recipe" / "report" / "report.md").read_text()
    assert "5 runs: 5 finished." in report
    assert [report.count(f"| {variant} |") for variant in ("dense", "k32", "k64", "k16")] == [1, 1, 1, 0]
    assert report.count("+25.00%") == 2


def test_two_processes_share_a_study(run, tmp_path, monkeypatch):
    """Another process trains k32 while this one trains dense, and k64 while this one starts to."""
    train = study_module._train

    def meanwhile(job, state, logs):
        reason = train(job, state, logs)
        if job.variant == "dense":
            monkeypatch.setattr(study_module, "_train", train)
            run("only=k32", "seeds=[1]")
            monkeypatch.setattr(study_module, "_train", meanwhile)
        return "already holds a run" if job.variant == "k64" else reason

    monkeypatch.setattr(study_module, "_train", meanwhile)
    printed = run("only=[dense,k32,k64]", "seeds=[1]")
    for line in ("[1/3] dense_1: finished in", "[2/3] k32_1: finished already", "[3/3] k64_1: finished already"):
        assert line in printed
    assert "Error" not in printed
    assert len((tmp_path / "studies/recipe/k32_1/calls.txt").read_text().splitlines()) == 1


def test_a_variant_that_starts_from_another_run_is_checked_with_its_model(run, tmp_path):
    write_run(tmp_path / "origin", "topk=none")  # 32 neurons
    tiny = ("study.base=['training.batch_tokens=64']", "seeds=[1]", "only=k64")
    assert "Error: study.variants.k64: topk.k=64 is larger than the 32 neurons" in run(
        *tiny, "study.variants.k64=['init_from=origin','topk.k=64']"
    )
    job = (*tiny, "study.variants.k64=['init_from=origin','topk.k=4']")
    assert "[1/1] k64_1: finished in" in run(*job)
    shutil.rmtree(tmp_path / "origin")
    assert "1 finished already" in run(*job)


def test_a_variant_may_start_from_one_of_the_study(run):
    from_dense = "study.variants.k32=['init_from=studies/recipe/dense_1']"
    printed = run("study.base=[]", from_dense, "only=[dense,k32]", "seeds=[1]")
    assert "[2/2] k32_1: study.variants.k32: init_from=studies/recipe/dense_1 has no checkpoint" in printed
    assert "Error: 1 of the study's jobs failed" in printed


def test_an_unfinished_job_is_continued_and_another_run_is_not_touched(run, tmp_path, make):
    make("studies/recipe/k32_1", study("only=k32").jobs[0].overrides, 4.0, status="interrupted", rows="1,2\n")
    run("only=k32", "seeds=[1]")
    (call,) = (tmp_path / "studies/recipe/k32_1/calls.txt").read_text().splitlines()
    assert call.startswith("run=studies/recipe/k32_1 k_schedule=linear model.d_model=256")
    make("studies/recipe/k16_1", ["topk.k=4", "seed=1"], 4.0)
    assert "studies/recipe/k16_1 already holds a run, with callbacks.dead" in run("only=k16", "seeds=[1]")


def test_a_run_of_a_version_with_fewer_settings_is_the_same_job(run, tmp_path, make):
    path = make("studies/recipe/dense_1", study("only=dense").jobs[0].overrides, 4.0)
    config = (path / "config.yaml").read_text()
    for line in ("  dead_alert: 0.1\n", "  clip_grad_norm: 1.0\n"):
        assert line in config
        config = config.replace(line, "")
    (path / "config.yaml").write_text(config)
    assert "1 finished already" in run("only=dense", "seeds=[1]")
    assert "already holds a run, with training.clip_grad_norm=nothing and not 0.5" in run(
        "only=dense", "seeds=[1]", "overrides=['training.clip_grad_norm=0.5']"
    )


def test_a_signal_reaches_the_job_once_and_the_report_is_written(tmp_path):
    """The real command, whose job counts the signals it gets."""
    (tmp_path / "train.py").write_text(
        TRAIN.replace("sys.exit(1)", "pass")
        + """
if k:
    def stop(*_):
        (run / "signals").open("a").write("x")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (run / "ready").touch()
    while not (run / "signals").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    sys.exit(130)
"""
    )
    script = "import topklm.reports.study as s, pathlib, runpy, sys; s.TRAIN = pathlib.Path('train.py').resolve()\n"
    script += (
        f"sys.argv[0] = {str(CONF.parent / 'scripts' / 'study.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", script, "study=recipe", "only=[dense,k32]", "seeds=[1]"]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "studies" / "recipe"
    deadline = time.monotonic() + 120
    while not (folder / "k32_1" / "ready").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "Stopped in k32_1. The same command goes on with the study.\n")
    assert (folder / "k32_1" / "signals").read_text() == "x"
    assert (folder / "report" / "report.html").exists()
    assert json.loads((folder / "dense_1" / "summary.json").read_text())["val_loss_final_k"] == 4.0
