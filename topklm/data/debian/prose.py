"""What counts as prose: whole sentences of words, and neither code nor tables nor lists of links."""

from __future__ import annotations

import re

MIN_WORDS = 8
MIN_LETTERS = 0.85  # of what is no white space; English prose has some 0.95, code and tables less
QUOTES = "'\"\u201c\u201d\u2018\u2019"
ENDS = re.compile(rf"[.!?:\u2026][{QUOTES})\]]*$")
BEGINS = re.compile(rf"[{QUOTES}(\[]*[^\W_]")


def tidy(text: str) -> str:
    """The text on one line, with single spaces and without the soft hyphens and marks that typesetting leaves."""
    return " ".join(text.replace("\xad", "").replace("\u200b", "").replace("¶", " ").split())


def is_prose(text: str) -> bool:
    """Whether a tidied paragraph reads as prose: it begins with a word, ends like a sentence, and is made of words."""
    words = text.count(" ") + 1
    if words < MIN_WORDS or not ENDS.search(text) or not BEGINS.match(text):
        return False
    return sum(map(str.isalpha, text)) >= MIN_LETTERS * (len(text) - words + 1)
