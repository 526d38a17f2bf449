"""Who is at work in a cache folder: the living are listed, the dead are swept out."""

import json
import os
import time
from socket import gethostname

import pytest

from topklm.data import presence as module
from topklm.data.presence import SILENT_SECONDS, Presence, present
from topklm.data.processes import is_alive, namespace, started_at

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


@pytest.mark.parametrize("other", ["host", "container"])
def test_a_process_that_cannot_be_seen_lives_as_long_as_it_gives_signs_of_life(tmp_path, monkeypatch, other):
    with monkeypatch.context() as there:
        there.setattr(module.socket, "gethostname", lambda: "elsewhere" if other == "host" else gethostname())
        there.setattr(module, "namespace", lambda: "another" if other == "container" else namespace())
        presence = Presence(tmp_path, "reader", pid=DEAD)
        presence.say(first=7)
    assert [who["pid"] for who in present(tmp_path, "reader")] == [DEAD]
    long_ago = time.time() - SILENT_SECONDS - 1
    os.utime(presence.path, (long_ago, long_ago))
    presence.touch()
    assert len(present(tmp_path, "reader")) == 1
    os.utime(presence.path, (long_ago, long_ago))
    assert present(tmp_path, "reader") == []
    presence.touch()  # it lived after all, and says again what it said
    assert [who["first"] for who in present(tmp_path, "reader")] == [7]


def test_signs_of_life_come_by_themselves_until_it_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.02)
    presence = Presence(tmp_path, "run")
    presence.say(budget_bytes=5)
    os.utime(presence.path, (0, 0))
    deadline = time.monotonic() + 20
    while presence.path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert presence.path.stat().st_mtime > 0
    presence.leave()
    time.sleep(0.2)
    assert not presence.path.exists()


def test_the_dead_of_any_role_are_swept_out_by_whoever_looks(tmp_path):
    for role in ("reader", "run", "writer"):
        Presence(tmp_path, role, pid=DEAD).say()
    assert present(tmp_path, "run") == []
    assert list((tmp_path / "present").iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_said(tmp_path):
    (tmp_path / "present").write_text("a file stands in the way")
    presence = Presence(tmp_path, "reader")
    presence.say()
    presence.touch()
    presence.leave()
    assert present(tmp_path, "reader") == []
