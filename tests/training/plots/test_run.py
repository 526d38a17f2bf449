"""The pictures of a run directory: which there are, that they show something, and what is said where none can be."""

import json

import matplotlib.image
import numpy as np
import pytest

from topklm.errors import UserError
from topklm.training.plots import layers, redraw
from topklm.training.plots.run import read_histograms


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr("topklm.training.plots.style.DPI", 40)


@pytest.fixture
def run(tmp_path):
    """run(layers, steps, ...): a run directory with made-up metrics, every fourth step validated."""

    def make(layers=2, steps=8, dense=False, value=None):
        rng = np.random.default_rng(0)
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text("training:\n  batch_tokens: 4096\n")
        names = ["train/loss", "val/loss", "val/loss_final_k", "train/grad_norm/layer_00", "train/grad_norm/head"]
        if not dense:
            prefixes = ("k", "sparsity/l0", "sparsity/energy_kept", "sparsity/dead_fraction", "neurons/effective_rank")
            prefixes += ("sparsity/overlap_tokens", "sparsity/overlap_tokens_chance", "neurons/token_entropy_median")
            names.append("neurons/unigram_entropy")
            names += [f"{prefix}/layer_{layer:02d}" for prefix in prefixes for layer in range(layers)]
        rows = [["step", *names]]
        with open(folder / "histograms.jsonl", "w") as file:
            for step in range(1, steps + 1):
                values = [
                    "3" if name.startswith("k/") else f"{rng.random() if value is None else value:.4f}"
                    for name in names
                ]
                rows.append(
                    [
                        str(step),
                        *(
                            "" if step % 4 and name.startswith("val") else v
                            for name, v in zip(names, values, strict=True)
                        ),
                    ]
                )
                for layer in range(0 if dense else layers):
                    counts = rng.integers(0, 9, 24).tolist()
                    name = f"sparsity/firing_rate_log10/layer_{layer:02d}"
                    line = {"step": step, "name": name, "edges": np.linspace(-6, 0, 25).tolist(), "counts": counts}
                    file.write(json.dumps(line) + "\n")
        (folder / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in rows))
        return folder

    return make


def assert_pictures(paths, names):
    assert [path.name for path in paths] == names
    for path in paths:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] > 400
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1, "steps": 1},
        {"layers": 14, "steps": 3},
        {"layers": 1, "steps": 900, "value": 0.0},  # nothing to scale colours by
    ],
)
@pytest.mark.filterwarnings("error")
def test_three_pictures(run, options):
    folder = run(**options)
    assert_pictures(redraw(folder), ["sparsity.png", "layers.png", "firing_rates.png"])
    assert sorted(path.name for path in (folder / "plots").iterdir()) == [
        "firing_rates.png",
        "layers.png",
        "sparsity.png",
    ]


def test_a_measure_that_is_nan_at_the_end_shows_no_earlier_value(tmp_path, monkeypatch):
    shown = {}

    def look(figure, target):
        shown.update({axis.get_title(loc="left"): [text.get_text() for text in axis.texts] for axis in figure.axes})

    monkeypatch.setattr(layers, "save", look)
    steps = np.array([1, 2, 3])
    series = {
        "k/layer_00": (steps, np.array([4.0, 3.0, 2.0])),
        "neurons/token_entropy_median/layer_00": (steps, np.array([6.0, 6.0, np.nan])),
        "neurons/unigram_entropy": (steps, np.array([7.0, 7.0, np.nan])),
        "neurons/effective_rank/layer_00": (steps, np.full(3, np.nan)),
    }
    assert layers.draw_layers(series, tmp_path / "layers.png", 100, "run")
    assert shown["Token entropy in bits, median neuron"] == ["-"]
    assert "Effective rank" not in shown


@pytest.mark.filterwarnings("error")
def test_a_dense_run_has_one(run):
    assert_pictures(redraw(run(dense=True)), ["sparsity.png"])


@pytest.mark.filterwarnings("error")
def test_a_run_of_which_no_measure_has_a_value(run):
    folder = run(layers=2, steps=3, value=float("nan"))
    assert_pictures(redraw(folder), ["sparsity.png", "firing_rates.png"])


@pytest.mark.filterwarnings("error")
def test_a_run_of_which_nothing_but_k_was_logged_by_layer(run):
    folder = run(layers=1)
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if "layer_" not in name or name.startswith("k/")]
    (folder / "metrics.csv").write_text("".join(",".join(row[i] for i in kept) + "\n" for row in rows))
    (folder / "histograms.jsonl").unlink()
    assert_pictures(redraw(folder), ["sparsity.png"])


@pytest.mark.filterwarnings("error")
def test_while_it_goes_on(run):
    """No validation yet, and lines that are being written."""
    folder = run()
    rows = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(rows[:3]) + "\n")
    lines = (folder / "histograms.jsonl").read_text().splitlines()
    (folder / "histograms.jsonl").write_text("\n".join([*lines[:3], lines[3][:30]]))
    assert len(read_histograms(folder / "histograms.jsonl")) == 2
    assert len(redraw(folder)) == 3
    (folder / "histograms.jsonl").unlink()
    assert len(redraw(folder)) == 2


def test_what_cannot_be_drawn(run, tmp_path):
    with pytest.raises(UserError, match="run=DIR is missing"):
        redraw(None)
    with pytest.raises(UserError, match=f"there is no run in {tmp_path} "):
        redraw(tmp_path)
    folder = run()
    (folder / "metrics.csv").write_text("step,train/loss\n")
    with pytest.raises(UserError, match="has logged nothing yet"):
        redraw(folder)
    (folder / "metrics.csv").write_text("step,train/loss\n1,many\n")
    with pytest.raises(UserError, match="metrics.csv is damaged .*many"):
        redraw(folder)
    (folder / "metrics.csv").unlink()
    with pytest.raises(UserError, match="has logged nothing yet"):
        redraw(folder)
    (folder / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="is not the config of a run"):
        redraw(folder)
