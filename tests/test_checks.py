"""Settings that a command has for itself."""

import pytest

from topklm.checks import flag, text, whole_or_null
from topklm.errors import UserError


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_no_whole_number(value):
    with pytest.raises(UserError, match=f"limit={value}: give a whole number of 1 or more, or null for all documents"):
        whole_or_null("limit", value, "all documents")


def test_whole_numbers():
    assert [whole_or_null("limit", value, "all") for value in (None, 1, 10_000)] == [None, 1, 10_000]


@pytest.mark.parametrize("value", ["no", "yes", 0, 1, None])
def test_what_is_neither_true_nor_false(value):
    with pytest.raises(UserError, match=f"overwrite={value}: choose true or false"):
        flag("overwrite", value)


def test_flags():
    assert [flag("verify", value) for value in (True, False)] == [True, False]


@pytest.mark.parametrize("value", [None, "", 3, ["a"]])
def test_no_path(value):
    with pytest.raises(UserError, match="give a path"):
        text("out", value)
