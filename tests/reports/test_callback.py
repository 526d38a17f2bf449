"""The report at the end of a sweep: written, left out, and never in the way."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.composing import composed
from topklm.reports.callback import SweepReport


@pytest.fixture
def end(tmp_path):
    """end(callback) tells a callback that the sweep in ``tmp_path/sweep`` has ended; returns its report's folder."""

    def run(callback):
        callback.on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}}))
        return tmp_path / "sweep" / "report"

    return run


def test_it_is_written_unless_turned_off(make, end):
    make("sweep/a", ["topk.k=4"], 4.0)
    assert not end(SweepReport(enabled=False)).exists()
    configured = composed(return_hydra_config=True).hydra.callbacks.report
    assert (end(instantiate(configured)) / "report.html").exists()


def test_a_report_that_fails_says_so_and_no_more(make, end, tmp_path, caplog):
    make("sweep/a", ["topk.k=4"], 4.0)
    (tmp_path / "sweep" / "report").touch()
    end(SweepReport())
    assert "The report of the sweep could not be written (Cannot write " in caplog.text
    assert f"python scripts/sweep_report.py sweep={tmp_path / 'sweep'}" in caplog.text


def test_other_commands_have_nothing_to_report(end, tmp_path):
    (tmp_path / "sweep").mkdir()
    assert not end(SweepReport()).exists()
