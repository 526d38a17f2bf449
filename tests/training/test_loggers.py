"""metrics.csv through growth, cuts and continuation; W&B only when asked for."""

import csv

import pytest

from topklm.errors import UserError
from topklm.training import loggers as loggers_module
from topklm.training.loggers import CSVLog, build_loggers, read_metrics, wandb_is_set_up
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
    assert rows(log.path) == [
        {"step": "1", "a": "1", "b": ""},
        {"step": "2", "a": "2", "b": "3"},
        {"step": "3", "a": "nan", "b": ""},
    ]
    steps, values = read_metrics(log.path)["b"]
    assert (steps.tolist(), values.tolist()) == ([2], [3.0])


def test_continuing_drops_later_rows_and_appends(tmp_path):
    log = CSVLog(tmp_path / "metrics.csv")
    for step in range(1, 6):
        log.log_metrics({"a": step}, step=step)
    log.save()
    with open(log.path, "a") as file:
        file.write("6")  # a kill cut the last row short
    again = CSVLog(log.path)
    again.truncate(3)
    again.log_metrics({"a": 40, "new": 1}, step=4)
    again.save()
    assert [(row["step"], row["a"]) for row in rows(log.path)] == [("1", "1"), ("2", "2"), ("3", "3"), ("4", "40")]


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b"\n"])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics.csv is damaged, .*: remove it"):
        CSVLog(tmp_path / "metrics.csv")


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    log = CSVLog.__new__(CSVLog)
    log.path, log.columns, log._row = tmp_path / "metrics.csv", ["step"], {"step": 1}
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
    assert [logger.name for logger in built] == ["csv"]
    assert "Weights & Biases is off" in caplog.text
    assert not list(tmp_path.iterdir())


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
    _, logger = build_loggers(LoggerConfig(wandb=True, project=project), tmp_path, {}, "id", None)
    with pytest.raises(UserError, match=f"^Weights & Biases: {reason}.* turn it off with logger=csv"):
        logger.experiment  # noqa: B018
