import dataclasses
import os
import signal

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")  # a developer's own W&B login must not be used by tests
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, a process per core

# A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = (
    "sparse dense neuron token model layer stream basis concept "
    "project service process support work city river music war"
).split()


@pytest.fixture(scope="session")
def corpus():
    """300 small documents with topics, from a fixed recipe."""
    import random

    from topklm.data import Document

    rng = random.Random(0)
    return [
        Document(
            f"doc{i}",
            " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) + ".",
            {"title": f"T{i}", "topic": rng.choice("ABC")},
        )
        for i in range(300)
    ]


class ListSource:
    """A source over a list of documents."""

    name = "list"

    def __init__(self, documents, fingerprint="list-1"):
        self._documents, self.fingerprint, self.skipped = documents, fingerprint, {}

    def documents(self, after=None):
        for number, document in enumerate(self._documents, start=1):
            if number > (after or 0):
                yield dataclasses.replace(document, cursor=number)


@pytest.fixture
def list_source():
    return ListSource


@pytest.fixture(scope="session")
def prepared(corpus, tmp_path_factory):
    """The corpus behind a tokenizer of 300 tokens, in stores."""
    from topklm.data import Split, TokenizerConfig, prepare

    return prepare(ListSource(corpus), TokenizerConfig(vocab_size=300), Split(0.1), tmp_path_factory.mktemp("cache"))
