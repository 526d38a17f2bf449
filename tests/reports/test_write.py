"""A report in all its forms, of runs in every state."""

import base64
import csv
import io
import re
import shutil

import filelock
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from topklm.errors import UserError
from topklm.reports.compare import compare
from topklm.reports.plots import draw
from topklm.reports.runs import find_runs, read_run
from topklm.reports.table import Grid, rich_table
from topklm.reports.write import report_sweep


@pytest.fixture
def report(tmp_path):
    """report(folder, ...) writes it; returns its folder and what was printed."""

    def run(*folders, out=None):
        printed = io.StringIO()
        target = report_sweep([tmp_path / folder for folder in folders], out, Console(file=printed, width=200))
        return target, printed.getvalue()

    return run


def grid(make):
    for width in (64, 128):
        for seed in (1, 2):
            make(
                f"sweep/dense{width}_{seed}", ["topk=none", f"model.d_model={width}", f"seed={seed}"], 4.0 + seed / 100
            )
            for k in (4, 8):
                overrides = [f"topk.k={k}", f"model.d_model={width}", f"seed={seed}"]
                make(f"sweep/k{k}_{width}_{seed}", overrides, 4.5 - k / 100, rows="100,5.0\n600,4.4\n")


def test_every_form_says_the_same(make, report):
    grid(make)
    target, printed = report("sweep")
    assert "12 runs: 12 finished." in printed
    with open(target / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["width"], row["k"], row["val_loss_n"]) for row in rows] == [
        (width, k, "2") for width in ("64", "128") for k in ("", "4", "8")
    ]
    expected = ((4.46 / 4.01 - 1) + (4.46 / 4.02 - 1)) / 2
    assert float(rows[1]["cost_mean"]) == pytest.approx(expected)
    assert rows[1]["seeds"] == "1 2"
    page = (target / "report.html").read_text()
    for text in (printed, page, (target / "report.md").read_text()):
        assert f"{expected:+.2%} ± 0.20%" in text
        assert "4.0150 ± 0.0071" in text
    assert {path.name for path in target.iterdir()} >= {"curves.png", "rows.png", "training.png"}


def test_the_page_needs_nothing_else(make, report):
    grid(make)
    target, _ = report("sweep")
    page = (target / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)]
    assert len(pictures) == 3
    assert all(b"<svg" in picture for picture in pictures)


def test_names_cannot_break_the_page(make, report):
    make("sweep/<b>", ["topk.k=4"], status="failed", reason='<script>alert("x")</script> | [red]')
    target, printed = report("sweep")
    page = (target / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;b&gt;" in page
    assert "[red]" in printed
    assert "\\| [red]" in (target / "report.md").read_text()


@pytest.mark.parametrize("folder", ["topk.sites=[mlp_neurons]", "[red] runs", "a[", "[bold"])
def test_a_folders_name_is_no_markup(make, report, folder):
    make(f"{folder}/a", ["topk.k=4"], 4.0)
    _, printed = report(folder)
    assert f"\n{folder}" in printed


def test_a_name_that_closes_a_tag_is_printed():
    printed = io.StringIO()
    Console(file=printed, width=60).print(rich_table(Grid(["a column of this width"], []), "sweeps [/a]"))
    assert printed.getvalue().startswith("sweeps [/a]")


def test_the_dense_line_needs_a_twin_of_any_row_and_not_of_the_first(make, tmp_path):
    make("sweep/dense", ["topk=none"], 4.0)
    for k, seed in ((4, 2), (8, 1), (16, 1)):  # the first without a twin of its seed
        make(f"sweep/{k}", [f"topk.k={k}", f"seed={seed}"], 4.5)
    figures = draw(compare(find_runs([tmp_path / "sweep"])))
    loss = figures["curves"].axes[0]
    levels = [line.get_ydata()[0] for line in loss.lines if line.get_linestyle() == "--"]
    for figure in figures.values():
        plt.close(figure)
    assert levels == [4.0]


@pytest.mark.parametrize(("widths", "columns"), [((128,), ["k:"]), ((64, 128), ["k:", "k/d:", "width"])])
def test_k_over_d_has_a_column_of_its_own_where_widths_differ(make, tmp_path, widths, columns):
    for width in widths:
        for k in (4, 8):
            make(f"sweep/{width}_{k}", [f"topk.k={k}", f"model.d_model={width}"], 4.5)
    figures = draw(compare(find_runs([tmp_path / "sweep"])))
    labels = [axis.get_xlabel() for axis in figures["curves"].axes if axis.get_xlabel()]
    for figure in figures.values():
        plt.close(figure)
    assert [label.split()[0] for label in labels] == columns


@pytest.fixture
def drawn(tmp_path):
    """drawn("sweep"): the pictures of a sweep, by name."""
    made = {}

    def draw_sweep(name):
        made.update(draw(compare(find_runs([tmp_path / name]))))
        return made

    yield draw_sweep
    for figure in made.values():
        plt.close(figure)


def test_a_dense_line_joins_twins_of_one_kind(make, drawn):
    for width in (64, 128):
        for steps in (100, 200):
            settings = [f"model.d_model={width}", f"training.steps={steps}"]
            loss = 5 - width / 100 - steps / 1000
            make(f"sweep/dense_{width}_{steps}", [*settings, "topk=none"], loss)
            make(f"sweep/k_{width}_{steps}", [*settings, "topk.k=8"], loss + 0.1)
    (loss,) = [axis for axis in drawn("sweep")["curves"].axes if axis.get_ylabel().startswith("validation")]
    lines = [line.get_xydata().tolist() for line in loss.lines if line.get_linestyle() == "--"]
    assert np.allclose(sorted(lines), [[[64, 4.16], [128, 3.52]], [[64, 4.26], [128, 3.62]]])


def test_of_more_series_than_can_be_told_apart_the_best_are_drawn(make, drawn):
    for number in range(30):
        for k in (4, 8):
            row = f"100,{9 - number / 10}\n600,{9 - number / 10}\n"
            make(
                f"sweep/{number}_{k}",
                [f"optimizer.lr={0.001 + number / 1e4}", f"topk.k={k}"],
                9 - number / 10,
                rows=row,
            )
    make("sweep/dense", ["topk=none"], 9.5, rows="600,9.5\n")
    figures = drawn("sweep")
    assert {name: figure.get_suptitle() for name, figure in figures.items()} == {
        "curves": "12 of 30 series, those with the lowest losses",
        "rows": "60 of 61 rows, those with the lowest losses",
        "training": "12 of 61 rows, those with the lowest losses",
    }
    legend = [text.get_text() for text in figures["training"].legends[0].get_texts()]
    assert "width 128, dense" in legend[0]
    assert len(legend) == 12
    assert all("lr=0.0039" in label or "lr=0.003" in label for label in legend[1:])


def test_the_window_of_the_dead_is_named(make, report):
    make("sweep/a", ["topk.k=4"], 4.0, window=1000)
    target, printed = report("sweep")
    assert "fired on none of the last 1,000 tokens" in " ".join(printed.split())
    make("sweep/b", ["topk.k=8"], 4.0, window=250_000)
    target, printed = report("sweep")
    page = (target / "report.html").read_text()
    for text in (printed, page, (target / "report.md").read_text()):
        assert "dead over" in text
        assert "250,000" in text
    with open(target / "report.csv", newline="") as file:
        assert [row["dead_window_tokens_mean"] for row in csv.DictReader(file)] == ["1000.0", "250000.0"]


def test_a_picture_of_an_earlier_report_goes(make, report, tmp_path):
    make("sweep/a", ["topk.k=4"], 4.0)
    second = make("sweep/b", ["topk.k=8"], 4.0)
    target, _ = report("sweep")
    assert (target / "curves.png").exists()
    shutil.rmtree(second)
    report("sweep")
    assert not (target / "curves.png").exists()


def test_runs_in_every_state(make, report, tmp_path):
    make("sweep/a", ["topk.k=4"], 4.0)
    make("sweep/failed", ["topk.k=8"], status="failed", reason="The loss became nan at step 7.")
    make("sweep/stopped", ["topk.k=8", "seed=2"], 5.0, status="interrupted", reason="Stopped by SIGINT.")
    make("sweep/killed", ["topk.k=8", "seed=3"], status="running")
    at_work = make(
        "sweep/at_work", ["topk.k=8", "seed=4", "training.tokens=4M"], status="running", rows="100,5\n700,5\n"
    )
    (tmp_path / "sweep" / "damaged").mkdir()
    (tmp_path / "sweep" / "damaged" / "summary.json").write_text("{")
    with filelock.FileLock(at_work / ".lock"):
        _, printed = report("sweep")
    states = {run.path.name: run.status for run in find_runs([tmp_path / "sweep"])}
    assert states == {
        "a": "finished",
        "at_work": "killed",  # by now
        "damaged": "unreadable",
        "failed": "failed",
        "killed": "killed",
        "stopped": "interrupted",
    }
    assert "1 finished" in printed
    assert re.search(r"at_work +│ running +│ 700 of 977 ", printed)
    assert re.search(r"failed +│ failed .*│ The loss became nan at step 7.", printed)
    assert "No dense twin is finished" in printed


def test_a_run_alone_and_a_place_of_its_own(make, report, tmp_path):
    path = make("one", ["topk.k=4"], 4.0)
    target, printed = report("one", out=tmp_path / "there" / "deep")
    assert target == tmp_path / "there" / "deep"
    assert "1 run: 1 finished." in printed
    assert read_run(path).facts["k"] == 4


def test_where_there_is_no_run(report, tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        report("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There is no run in .*empty"):
        report("empty")
    assert not (tmp_path / "empty" / "report").exists()


def test_a_report_that_cannot_be_written(make, report, tmp_path):
    make("sweep/a", ["topk.k=4"], 4.0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write .*file/x: .*out="):
        report("sweep", out=tmp_path / "file" / "x")
