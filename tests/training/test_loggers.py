"""metrics.csv through growth, cuts and continuation; W&B only when asked for."""

import csv
from pathlib import Path

import pytest
import wandb

from tests import offline_wandb
from tests.composing import checked
from topklm.errors import UserError
from topklm.training import loggers as loggers_module
from topklm.training.loggers import CSVLog, build_loggers, finish_loggers, wandb_is_set_up, wandb_run_id
from topklm.training.metrics_file import MetricsFile, read_metrics
from topklm.training.sections import LoggerConfig


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_step_and_columns_as_they_come(tmp_path):
    log = CSVLog(tmp_path / "metrics.csv")
    log.log_metrics({"a": 1.0}, step=1)
    log.log_metrics({"a": 2.0}, step=2)
    log.log_metrics({"b": 3.0}, step=2)
    log.log_metrics({"a": float("nan")}, step=3)
    log.finalize("success")
    assert rows(log.file.path) == [
        {"step": "1", "a": "1", "b": ""},
        {"step": "2", "a": "2", "b": "3"},
        {"step": "3", "a": "nan", "b": ""},
    ]
    steps, values = read_metrics(log.file.path)["b"]
    assert (steps.tolist(), values.tolist()) == ([2], [3.0])


def test_continuing_drops_later_rows_and_appends(tmp_path):
    log = CSVLog(tmp_path / "metrics.csv")
    for step in range(1, 6):
        log.log_metrics({"a": step}, step=step)
    log.save()
    with open(log.file.path, "a") as file:
        file.write("6")  # a kill cut the last row short
    again = CSVLog(log.file.path)
    again.file.truncate(3)
    again.log_metrics({"a": 40, "new": 1}, step=4)
    again.save()
    assert [(row["step"], row["a"]) for row in rows(log.file.path)] == [("1", "1"), ("2", "2"), ("3", "3"), ("4", "40")]


def test_a_row_may_be_saved_and_added_to(tmp_path):
    """A checkpoint saves it, and the validation of the last step comes later."""
    log = CSVLog(tmp_path / "metrics.csv")
    log.log_metrics({"a": 1}, step=1)
    log.save()
    log.log_metrics({"a": 2}, step=2)
    log.save()
    log.save()
    log.log_metrics({"a": 3}, step=2)
    log.save()
    log.log_metrics({"b": 4}, step=2)
    log.finalize("success")
    log.log_metrics({"c": 5}, step=2)
    log.finalize("success")
    expected = [{"step": "1", "a": "1", "b": "", "c": ""}, {"step": "2", "a": "3", "b": "4", "c": "5"}]
    assert rows(log.file.path) == expected
    again = CSVLog(log.file.path)  # the run continues from step 2
    again.log_metrics({"b": 6}, step=2)
    again.log_metrics({"a": 7}, step=3)
    again.finalize("success")
    expected[1]["b"] = "6"
    assert rows(log.file.path) == [*expected, {"step": "3", "a": "7", "b": "", "c": ""}]


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b"\n"])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics.csv is damaged, .*: remove it"):
        MetricsFile(tmp_path / "metrics.csv")


def test_a_full_disk_is_told(tmp_path):
    log = CSVLog(tmp_path / "metrics.csv")
    log.log_metrics({"a": 1.0}, step=1)
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(UserError, match="Cannot write .*metrics.csv"):
        log.save()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"WANDB_API_KEY": "x"}, True),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x"}, False),
    ],
)
def test_when_wandb_is_set_up(monkeypatch, tmp_path, environment, expected):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_is_set_up() == expected


def test_a_login_in_netrc_counts(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert wandb_is_set_up()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not wandb_is_set_up()


def test_csv_alone_writes_no_other_files(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(loggers_module, "wandb_is_set_up", lambda: False)
    with caplog.at_level("INFO"):
        built = build_loggers(LoggerConfig(), tmp_path, {}, "id", None)
    assert [logger.name for logger in built] == ["csv", "alerts"]
    assert "Weights & Biases is off" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "first"), [([], 0), ([0], 1), ([0, 10], 11)])
def test_tensorboard_forgets_what_will_be_logged_again(tmp_path, steps, first):
    """By what the table still has: nothing of a run that begins anew, the validation before the first step of one that
    goes on from a checkpoint before its first row."""
    for step in steps:
        MetricsFile(tmp_path / "metrics.csv").append({"step": step, "val/loss": 4.0})
    tensorboard = build_loggers(LoggerConfig(wandb=False, tensorboard=True), tmp_path, {}, "id", None)[-1]
    assert tensorboard._kwargs == {"purge_step": first}


def test_tensorboard_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers_module, "_has_tensorboard", lambda: False)
    with pytest.raises(UserError, match="needs the package tensorboard"):
        build_loggers(LoggerConfig(wandb=False, tensorboard=True), tmp_path, {}, "id", None)


@pytest.mark.parametrize(
    ("mode", "project", "reason"),
    [("bogus", "topklm", "mode=bogus: Input should be 'online'"), ("offline", "a/b", "Invalid project name 'a/b'")],
)
def test_what_wandb_refuses(monkeypatch, tmp_path, mode, project, reason):
    monkeypatch.setenv("WANDB_MODE", mode)
    config = LoggerConfig(wandb=True, project=project, dead_alert=None)
    _, logger = build_loggers(config, tmp_path, checked().plain, "id", None)
    with pytest.raises(UserError, match=f"^Weights & Biases: {reason}.* turn it off with logger=csv"):
        logger.experiment  # noqa: B018


def records(folder, kind):
    """The records of a kind in a W&B run that was written offline."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    return [record[kind] for record in offline_wandb.records(run) if record["type"] == kind]


def test_a_relative_directory_when_wandbs_service_was_started_elsewhere(monkeypatch, tmp_path):
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    wandb.setup()  # starts the service
    (tmp_path / "here").mkdir()
    monkeypatch.chdir("here")
    built = build_loggers(LoggerConfig(wandb=True), Path("run"), checked().plain, "abcd1234", None)
    built[1].log_metrics({"val/loss": 5.0}, step=1)
    finish_loggers(built, {"status": "finished", "layers": []})
    assert any("val/loss" in record["item"] for record in records(tmp_path / "here" / "run", "history"))


def test_what_wandb_can_group_sort_and_tell(monkeypatch, tmp_path, caplog):
    """A whole run in small: the config, which values its table shows, and alerts."""
    wandb.teardown()  # which keeps the environment of its first use
    monkeypatch.setenv("WANDB_MODE", "offline")
    plain = checked("topk.k_ratio=0.25", "model.d_model=64", "k_schedule=cosine").plain
    built = build_loggers(LoggerConfig(wandb=True, dead_alert=0.1), tmp_path, plain, "abcd1234", None)
    with caplog.at_level("WARNING"):
        for step, loss, dead in ((1, 5.0, 0.05), (2, 3.0, 0.2), (3, 4.0, 0.3), (4, 3.5, 0.1), (5, 3.6, 0.11)):
            row = {"val/loss": loss, "sparsity/dead_window_tokens": 5000}
            row |= {"sparsity/dead_fraction/layer_00": dead, "sparsity/dead_fraction/layer_01": 0.0}
            for logger in built:
                logger.log_metrics(row, step=step)
    sites = [{"topk": True, "dead_fraction": dead, "energy_kept": 0.5 + dead} for dead in (0.11, 0.0)]
    finish_loggers(built, {"status": "finished", "val_loss": 3.4, "val_loss_final_k": 3.6, "layers": sites})

    (run,) = records(tmp_path, "run")
    config = run["config"]["update"]
    asked = {"width": 64, "k": 16, "k_over_d": 0.25, "dense": False, "k_shape": "cosine", "sites": "resid_post_mlp"}
    assert asked.items() <= config.items()
    assert config["topk"]["k_ratio"] == 0.25
    summary = {}
    for record in records(tmp_path, "summary"):
        summary |= record["update"]
    assert summary["val/loss"] == {"min": 3.0, "last": 3.6}
    assert (summary["final/val_loss"], summary["final/dead_worst"], summary["final/energy_kept_last"]) == (
        3.6,
        0.11,
        0.5,
    )
    alerts = records(tmp_path, "alert")
    assert [alert["title"] for alert in alerts] == [f"layer_00: dead neurons at step {step}" for step in (2, 5)]
    text = "20.0% of the neurons of layer_00 are dead over the last 5,000 tokens, more than logger.dead_alert=0.1."
    assert alerts[0]["text"] == text
    assert caplog.text.count("are dead") == 2


def test_a_run_that_continues_does_not_tell_again(monkeypatch, tmp_path, caplog):
    log = CSVLog(tmp_path / "metrics.csv")
    log.log_metrics({"sparsity/dead_fraction/layer_00": 0.4, "sparsity/dead_fraction/layer_01": 0.4}, step=1)
    log.log_metrics({"sparsity/dead_fraction/layer_01": 0.0}, step=2)
    log.save()
    *_, alerts = build_loggers(LoggerConfig(wandb=False), tmp_path, {}, "id", None)
    with caplog.at_level("WARNING"):
        alerts.log_metrics({f"sparsity/dead_fraction/layer_0{layer}": 0.5 for layer in (0, 1)}, step=3)
    assert "layer_01" in caplog.text
    assert "layer_00" not in caplog.text


def test_the_agent_of_a_sweep_names_the_run(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert wandb_run_id() != wandb_run_id() != "fromagent"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert wandb_run_id() == "fromagent"


@pytest.mark.parametrize("limit", [-0.1, 1])
def test_a_limit_that_is_no_share(limit):
    with pytest.raises(ValueError, match=f"^logger.dead_alert={limit}: give a share"):
        LoggerConfig(dead_alert=limit)
