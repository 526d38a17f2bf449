"""What every source is held to."""

import json
import pickle

import pytest


def told_apart(document):
    return document.id, document.text, document.meta, document.cursor, None if document.ids is None else [*document.ids]


@pytest.fixture(scope="session")
def resumes():
    """Checks that a source, begun again after each of its documents, yields exactly the rest, also once it has been
    sent to another process and its cursor through JSON; returns its documents."""

    def check(source):
        whole = list(source.documents())
        described = [told_apart(document) for document in whole]
        assert len({document.id for document in whole}) == len(whole)
        assert [told_apart(document) for document in source.documents()] == described
        for number, document in enumerate(whole, start=1):
            again = pickle.loads(pickle.dumps(source))
            rest = again.documents(json.loads(json.dumps(document.cursor)))
            assert [told_apart(document) for document in rest] == described[number:]
        return whole

    return check
