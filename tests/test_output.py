"""Standard output that nobody reads any more."""

import os
import signal
import sys

import pytest

from topklm.output import Output, output_is_broken, watched_output


@pytest.fixture
def unread():
    """A stream into a pipe whose reader has gone."""
    read, write = os.pipe()
    with open(write, "w", encoding="utf-8") as stream:
        os.close(read)
        yield stream


@pytest.fixture
def received():
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_one_signal_and_then_silence(unread, received):
    output = Output(unread)
    assert output.write("in the buffer\n") == 14
    assert (output.is_broken, received) == (False, [])
    output.flush()
    assert (output.is_broken, received) == (True, [signal.SIGTERM])
    assert output.write("x" * 100_000) == 100_000
    output.flush()
    assert received == [signal.SIGTERM]


def test_a_write_that_is_larger_than_the_buffer(unread, received):
    output = Output(unread)
    assert output.write("x" * 100_000) == 100_000
    assert (output.is_broken, received) == (True, [signal.SIGTERM])


def test_what_is_read_passes(tmp_path, received):
    with open(tmp_path / "out", "w", encoding="utf-8") as stream:
        output = Output(stream)
        output.write("ä\n")
        output.flush()
        assert (output.encoding, output.isatty(), output.fileno()) == ("utf-8", False, stream.fileno())
    assert (tmp_path / "out").read_text() == "ä\n"
    assert (output.is_broken, received) == (False, [])


def test_where_there_is_no_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with watched_output():
        assert not output_is_broken()
    assert sys.stdout is None
