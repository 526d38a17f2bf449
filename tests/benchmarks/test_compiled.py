"""What is said of torch.compile, with times that the test sets."""

import pytest
from torch import nn

from topklm.benchmarks import compiled
from topklm.benchmarks.timing import Timing
from topklm.errors import UserError


@pytest.fixture
def times(monkeypatch):
    """times(plain, compiled, first): seconds of a step, and of the first compiled one. Nothing is compiled; returns the
    modules that would have been."""

    def set_them(plain, fast, first):
        asked = []
        monkeypatch.setattr(nn.Module, "compile", lambda self, **how: asked.append(type(self).__name__))
        given = iter([plain, first] * 2)
        monkeypatch.setattr(compiled, "_seconds", lambda step: next(given))
        seconds = {"plain": plain, "compiled": fast}
        monkeypatch.setattr(
            compiled, "interleave", lambda contenders, rounds: {n: Timing(n, [seconds[n]] * rounds) for n in contenders}
        )
        monkeypatch.setattr(compiled, "compile_obstacle", lambda device: None)
        return asked

    return set_them


def test_it_pays(config, times):
    asked = times(plain=2.0, fast=1.0, first=32.0)
    result = compiled.compile_benchmark(config(), rounds=3)
    assert asked == ["Block"] * 4  # two models of two blocks
    assert [(row["contender"], row["step"], row["tokens/s"]) for row in result.rows] == [
        ("topk", "plain", 32),
        ("topk", "compiled", 64),
        ("dense twin", "plain", 32),
        ("dense twin", "compiled", 64),
    ]
    assert result.findings[0] == (
        "topk: compiled steps are 2.00 times as fast, compiling takes 30 s with empty caches: it "
        "pays after 30 steps (the run has 12)"
    )


def test_it_does_not_pay(config, times):
    times(plain=1.0, fast=1.25, first=9.0)
    assert (
        "0.80 times as fast, compiling takes 8 s with empty caches: it does not pay"
        in compiled.compile_benchmark(config(), 3).findings[1]
    )


def test_no_compiler(config, monkeypatch):
    monkeypatch.setattr(compiled, "compile_obstacle", lambda device: "there is none")
    with pytest.raises(UserError, match="what=compile: there is none, so nothing can be compiled here"):
        compiled.compile_benchmark(config(), 3)
