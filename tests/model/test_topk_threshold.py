"""Building and caching the compiled search."""

import pytest

from topklm.model import topk_threshold


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No library loaded yet, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    topk_threshold.library.cache_clear()
    yield tmp_path / "topklm"
    topk_threshold.library.cache_clear()


def test_builds_once_and_is_found_again(fresh):
    topk_threshold.library()
    (built,) = fresh.iterdir()
    when = built.stat().st_mtime_ns
    topk_threshold.library.cache_clear()
    topk_threshold.library()
    assert built.stat().st_mtime_ns == when


def test_falls_back_to_plainer_flags(fresh, monkeypatch):
    unknown = [*topk_threshold.FLAGS, "-fno-such-flag-at-all"]
    monkeypatch.setattr(topk_threshold, "FLAG_SETS", [unknown, topk_threshold.FLAGS])
    topk_threshold.library()
    assert len(list(fresh.iterdir())) == 1


def test_says_what_is_missing(fresh, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(topk_threshold.NoCompiler, match="no C compiler found"):
        topk_threshold.library()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(topk_threshold.NoCompiler, match="could not build"):
        topk_threshold.library()
