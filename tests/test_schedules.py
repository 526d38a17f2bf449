"""Schedules are pure functions of progress: their ends, their order, their durations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.schedules import SHAPES, Schedule, Trapezoid, interpolate, share_of_training

progress = st.floats(0, 1)
moving = [shape for shape in SHAPES if shape != "constant"]


@pytest.mark.parametrize("shape", moving)
def test_ends_and_middle(shape):
    assert interpolate(shape, 0.0, 128, 16) == 128
    assert interpolate(shape, 1.0, 128, 16) == 16
    middle = {"linear": 72, "cosine": 72, "exponential": math.sqrt(128 * 16), "step": 72}[shape]
    assert interpolate(shape, 0.5, 128, 16) == pytest.approx(middle)


@given(shape=st.sampled_from(moving), a=progress, b=progress)
def test_moves_one_way(shape, a, b):
    low, high = sorted((a, b))
    assert interpolate(shape, low, 128, 16) >= interpolate(shape, high, 128, 16) - 1e-9


def test_unknown_shape():
    with pytest.raises(ValueError, match="unknown schedule shape 'zigzag'"):
        interpolate("zigzag", 0.5, 1, 2)


@given(shape=st.sampled_from(SHAPES), p=progress, hold=st.floats(0, 0.5), length=st.floats(0, 0.5))
def test_schedule_waits_moves_and_stays(shape, p, hold, length):
    k = Schedule(shape, hold, length).integer(p, 128, 16)
    assert isinstance(k, int)
    assert 16 <= k <= 128
    if shape == "constant" or p >= hold + length + 1e-9:
        assert k == 16
    elif p < hold:
        assert k == 128


@pytest.mark.parametrize("shape", moving)
def test_arrives_with_the_last_step(shape):
    """Also where hold + length, or (1 - hold) / length, is not quite 1 in floats."""
    assert all(Schedule(shape, h / 100, (100 - h) / 100).integer(1.0, 128, 16) == 16 for h in range(101))


def test_steps_jump_when_they_are_due():
    schedule = Schedule("step", 0.1, 0.7, n_steps=7)
    assert [schedule.integer(p / 10, 100, 30) for p in range(1, 9)] == [100, 90, 80, 70, 60, 50, 40, 30]


def test_step_jumps_equally_and_arrives():
    schedule = Schedule("step", 0.0, 1.0, n_steps=4)
    assert [schedule.integer(p, 100, 20) for p in (0, 0.24, 0.26, 0.5, 0.76, 1.0)] == [100, 100, 80, 60, 40, 20]


@pytest.mark.parametrize(
    ("duration", "share"),
    [
        (0.1, 0.1),
        (50, 0.5),
        ("5%", 0.05),
        ("20 steps", 0.2),
        ("10k tokens", 0.1),
        ("0.05M tokens", 0.5),
        ("1 step", 0.01),
        (0, 0.0),
    ],
)
def test_durations(duration, share):
    assert share_of_training(duration, "x", total_steps=100, tokens_per_step=1000) == pytest.approx(share)


@pytest.mark.parametrize("duration", ["soon", "5", "-3 steps", -1, 1.5, -0.1, True, None, "5% tokens"])
def test_not_a_duration(duration):
    with pytest.raises(ValueError, match=r"k_schedule.hold=.*give a share of training"):
        share_of_training(duration, "k_schedule.hold", 100, 1000)


def test_learning_rate_rises_stays_and_falls():
    wsd = Trapezoid(warmup=0.1, decay=0.2, shape="linear", end=0.1)
    assert [wsd(p) for p in (0.0, 0.05, 0.1, 0.5, 0.8)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert wsd(0.9) == pytest.approx(0.55)
    assert wsd(1.0) == pytest.approx(0.1)


def test_cosine_from_the_warmup_on():
    cosine = Trapezoid(warmup=0.1, decay=1.0, shape="cosine")
    assert cosine(0.1) == 1
    assert cosine(0.55) == pytest.approx(0.5)
    assert cosine(1.0) == 0


def test_constant_rate_and_no_warmup():
    assert [Trapezoid(0.0, 0.0, "constant")(p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
