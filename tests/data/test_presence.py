"""Who is at work in a cache folder: the living are listed, the dead are swept out."""

import json
import os
import time

import pytest

from topklm.data import presence as module
from topklm.data.presence import SILENT_SECONDS, Presence, present
from topklm.data.processes import is_alive, started_at

DEAD = 2**22 - 3  # no process has this number


def test_what_the_living_say_is_found_by_role(tmp_path):
    Presence(tmp_path, "reader", "train").say(first=3, stop=5)
    Presence(tmp_path, "reader", "validation").say(first=0, stop=1)
    Presence(tmp_path, "run").say(budget_bytes=None)
    assert sorted((who["first"], who["stop"]) for who in present(tmp_path, "reader")) == [(0, 1), (3, 5)]
    assert [who["pid"] for who in present(tmp_path, "run")] == [os.getpid()]
    assert present(tmp_path, "writer") == []


def test_later_words_replace_earlier_ones_and_leaving_takes_them_back(tmp_path):
    presence = Presence(tmp_path, "reader")
    presence.say(first=1)
    presence.say(first=2)
    assert [who["first"] for who in present(tmp_path, "reader")] == [2]
    presence.leave()
    presence.leave()
    assert present(tmp_path, "reader") == []


def test_the_dead_are_swept_out(tmp_path):
    presence = Presence(tmp_path, "reader", pid=DEAD)
    presence.say()
    assert present(tmp_path, "reader") == []
    assert not presence.path.exists()


@pytest.mark.skipif(started_at(os.getpid()) is None, reason="no /proc here")
def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path):
    presence = Presence(tmp_path, "reader")
    presence.say()
    presence.path.write_text(json.dumps(json.loads(presence.path.read_text()) | {"started": "1"}))
    assert present(tmp_path, "reader") == []
    assert is_alive(os.getpid())
    assert not is_alive(os.getpid(), "1")


def test_a_process_of_another_host_lives_as_long_as_it_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    presence = Presence(tmp_path, "reader", pid=DEAD)
    presence.say(first=7)
    monkeypatch.undo()
    assert [who["host"] for who in present(tmp_path, "reader")] == ["elsewhere"]
    long_ago = time.time() - SILENT_SECONDS - 1
    os.utime(presence.path, (long_ago, long_ago))
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0)
    presence.touch()
    assert len(present(tmp_path, "reader")) == 1
    os.utime(presence.path, (long_ago, long_ago))
    assert present(tmp_path, "reader") == []
    presence.touch()  # it lived after all, and says again what it said
    assert [who["first"] for who in present(tmp_path, "reader")] == [7]


def test_where_nothing_can_be_written_nothing_is_said(tmp_path):
    (tmp_path / "present").write_text("a file stands in the way")
    presence = Presence(tmp_path, "reader")
    presence.say()
    presence.touch()
    presence.leave()
    assert present(tmp_path, "reader") == []
