"""What varies, what makes a row, and what a row says."""

import statistics

import pytest

from topklm.reports.compare import compare, front, short_names
from topklm.reports.runs import find_runs, read_run
from topklm.training.rundir import RunDirectory


def rows_of(folder, **options):
    return {row.label: row for row in compare(find_runs([folder]), **options).rows}


def test_seeds_are_averaged_and_the_cost_is_paired_by_seed(make, tmp_path):
    losses = {1: (4.0, 4.4), 2: (5.0, 5.25), 3: (4.5, None)}
    for seed, (dense, sparse) in losses.items():
        make(f"sweep/dense_{seed}", ["topk=none", f"seed={seed}"], loss=dense)
        if sparse:
            make(f"sweep/sparse_{seed}", ["topk.k=16", f"seed={seed}"], loss=sparse, dead=(0.2, 0.1 * seed, 0.0))
    rows = rows_of(tmp_path / "sweep")
    assert list(rows) == ["width 128, dense", "width 128, k 16"]
    row = rows["width 128, k 16"]
    assert row.results["val_loss"].values == (4.4, 5.25)
    assert row.results["cost"].mean == pytest.approx((0.1 + 0.05) / 2)
    assert row.results["cost"].std == pytest.approx(statistics.stdev([0.1, 0.05]))
    assert row.results["dead_worst"].values == (0.2, 0.2)
    assert row.results["energy_kept_last"].mean == pytest.approx(0.7)
    assert row.dense["val_loss"] == 4.5  # of its own two seeds
    assert "cost" not in rows["width 128, dense"].results


def test_each_width_has_its_own_twin_also_in_another_folder(make, tmp_path):
    for width, loss in ((64, 5.0), (128, 4.0)):
        make(f"dense/{width}", ["topk=none", f"model.d_model={width}", "callbacks.dead_neurons.window_tokens=9"], loss)
        make(f"sparse/{width}", ["topk.k=4", f"model.d_model={width}", "logger=csv"], loss * 1.1)
    make("sparse/lr", ["topk.k=4", "optimizer.lr=0.1"], 4.1)
    comparison = compare(find_runs([tmp_path / "sparse", tmp_path / "dense"]))
    sparse = [row for row in comparison.rows if not row.is_dense]
    costs = {row.label: row.results["cost"].mean for row in sparse if "cost" in row.results}
    assert costs == {
        "width 64, k 4, lr=0.012": pytest.approx(0.1),
        "width 128, k 4, lr=0.012": pytest.approx(0.1),
    }
    assert len(sparse) == 3  # the one with another learning rate has no twin


def test_a_dense_twin_trained_twice_counts_once_and_costs_nothing(make, tmp_path):
    make("a/dense", ["topk=none"], loss=4.0)
    make("b/dense", ["topk=none"], loss=5.0)
    make("b/sparse", ["topk.k=4"], loss=4.4)
    rows = {row.label: row for row in compare(find_runs([tmp_path / "a", tmp_path / "b"])).rows}
    dense, sparse = rows["width 128, dense"], rows["width 128, k 4"]
    assert dense.results["val_loss"].values == (4.0,)
    assert "cost" not in dense.results
    assert sparse.results["cost"].values == (pytest.approx(0.1),)


def test_a_dense_row_of_other_telemetry_has_no_cost_and_a_dense_variant_has_one(make, tmp_path):
    paths = {
        "dense": make("sweep/dense", ["topk=none"], loss=4.0),
        "often": make("sweep/often", ["topk=none", "training.log_every=5"], loss=5.0),
    }
    assert not any("cost" in row.results for row in rows_of(tmp_path / "sweep").values())
    named = compare([read_run(path, name) for name, path in paths.items()], list(paths), "dense").rows
    assert [row.results["cost"].values if "cost" in row.results else None for row in named] == [None, (0.25,)]


@pytest.mark.parametrize(
    "setting",
    [
        "training.eval_at_start=true",
        "training.micro_batch_tokens=1024",
        "trainer.activation_checkpointing=block_sparse",
        "trainer.compile=true",
        "data.on_error=skip",
    ],
)
def test_what_changes_no_result_parts_no_twins(make, tmp_path, setting):
    files = ["data=files", "data.paths=[a.txt]"]
    make("sweep/dense", ["topk=none", *files], 4.0)
    make("sweep/sparse", ["topk.k=4", *files, setting], 4.2)
    (sparse,) = (row for row in rows_of(tmp_path / "sweep").values() if not row.is_dense)
    assert sparse.results["cost"].mean == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("topk.select", ("value", "magnitude")),
        ("k_schedule.length", (0.25, 0.75)),
        ("topk.sites", ("[resid_post_attn]", "[mlp_neurons]")),
        ("callbacks.checkpoints.keep", (1, 2)),
    ],
)
def test_any_setting_may_be_the_factor(make, tmp_path, setting, values):
    for number, value in enumerate(values):
        for seed in (1, 2):
            make(f"sweep/{number}{seed}", [f"{setting}={value}", f"seed={seed}", "topk.k=4"], 4.0 + number)
    comparison = compare(find_runs([tmp_path / "sweep"]))
    assert comparison.factors == [setting]
    assert [row.results["val_loss"].n for row in comparison.rows] == [2, 2]
    assert {str(row.factors[setting]).replace("'", "") for row in comparison.rows} == {str(value) for value in values}


def test_what_follows_another_setting_is_no_factor_of_its_own(make, tmp_path):
    for every in (5, 10):  # which callbacks.non_finite.every_n_steps follows
        make(f"sweep/{every}", [f"training.log_every={every}"], 4.0)
    assert compare(find_runs([tmp_path / "sweep"])).factors == ["training.log_every"]


def test_what_follows_the_width_parts_no_series(make, tmp_path):
    """As in hparams_search=k_width, where the heads keep their width."""
    for width, heads in ((128, 2), (192, 3), (256, 4)):
        for k in (16, 32):
            settings = [f"model.d_model={width}", f"model.n_heads={heads}", f"topk.k={k}"]
            make(f"sweep/{width}_{k}", settings, 4.0)
    comparison = compare(find_runs([tmp_path / "sweep"]))
    assert comparison.factors == ["model.n_heads"]  # it has its column
    assert [row.label for row in comparison.rows] == [f"width {w}, k {k}" for w in (128, 192, 256) for k in (16, 32)]


def test_k_is_compared_as_what_it_comes_to(make, tmp_path):
    make("sweep/a", ["topk.k=16", "seed=1"], 4.0)
    make("sweep/b", ["topk.k_ratio=0.125", "seed=2"], 4.2)
    make("sweep/c", ["topk.k=[16,8,4]"], 4.3)
    rows = rows_of(tmp_path / "sweep")
    assert list(rows) == ["width 128, k 4-16", "width 128, k 16"]
    assert rows["width 128, k 16"].results["val_loss"].n == 2


def test_settings_of_another_version_part_nothing(make, tmp_path):
    path = make("sweep/old", ["topk=none"], 4.0)
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config.replace("  qk_norm: true\n", ""))
    make("sweep/new", ["topk.k=8"], 4.2)
    rows = rows_of(tmp_path / "sweep")
    assert rows["width 128, k 8"].results["cost"].mean == pytest.approx(0.05)


def test_only_finished_runs_count(make, tmp_path):
    make("sweep/a", ["topk.k=4"], 4.0)
    make("sweep/b", ["topk.k=4", "seed=2"], 9.0, status="interrupted")
    make("sweep/c", ["topk.k=8"], status="failed", reason="topk.k: no.", config=False)
    comparison = compare(find_runs([tmp_path / "sweep"]))
    (row,) = comparison.rows
    assert row.results["val_loss"].values == (4.0,)
    assert [(run.path.name, run.status) for run in comparison.unfinished] == [("b", "interrupted"), ("c", "failed")]


@pytest.mark.parametrize("of_a_study", [False, True])
def test_a_run_that_a_callback_ended_has_no_twin_of_more_steps_and_is_listed(make, tmp_path, of_a_study):
    make("sweep/dense", ["topk=none"], loss=4.0)
    early = RunDirectory(make("sweep/early", ["topk.k=4"], loss=4.4, reason="A callback ended it after step 300."))
    early.write_summary({**early.read_summary(), "steps": 300})
    if of_a_study:
        names = ["dense", "early"]
        comparison = compare([read_run(tmp_path / "sweep" / name, name) for name in names], names, "dense")
    else:
        comparison = compare(find_runs([tmp_path / "sweep"]))
    (row,) = (row for row in comparison.rows if not row.is_dense)
    assert row.results["val_loss"].values == (4.4,)
    assert "cost" not in row.results
    assert [run.path.name for run in comparison.unfinished] == ["early"]


def test_the_front(make, tmp_path):
    for k, width, loss in ((4, 64, 5.0), (8, 64, 4.5), (4, 128, 4.4), (8, 128, 4.0), (16, 64, 4.2)):
        make(f"sweep/{k}_{width}", [f"topk.k={k}", f"model.d_model={width}"], loss)
    rows = rows_of(tmp_path / "sweep")
    assert [label for label, row in rows.items() if row.on_front] == ["width 128, k 4", "width 128, k 8"]
    assert front([(2, 1.0), (1, 3.0), (2, 2.0), (3, 1.0), (1, 3.0)]) == [(1, 3.0), (2, 1.0)]


def test_short_names():
    names = ["topk.select", "a.length", "b.length", "x.k"]
    assert list(short_names(names).values()) == ["select", "a.length", "b.length", "x.k"]
