"""The command that draws a run's pictures: it finds the run, changes nothing else, and a slip gets one line."""

import shutil


def test_it_draws_anew(command, tmp_path, finished):
    shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "plots")
    before = sorted(tmp_path.rglob("*"))
    process = command("scripts/plot_run.py", "run=run")
    pictures = [f"run/plots/{name}.png" for name in ("sparsity", "layers", "firing_rates")]
    assert process.stdout.splitlines() == pictures
    assert process.stderr == ""
    assert sorted(tmp_path.rglob("*")) == sorted(
        [*before, tmp_path / "run" / "plots", *(tmp_path / picture for picture in pictures)]
    )


def test_a_slip(command, tmp_path):
    for arguments, words in (([], "run=DIR is missing"), (["run=nowhere"], "there is no run in nowhere")):
        process = command("scripts/plot_run.py", *arguments, check=False)
        assert process.returncode == 1
        assert process.stderr.startswith("Error: ")
        assert words in process.stderr
        assert len(process.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
