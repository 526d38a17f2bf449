"""The data card: its numbers against counts made another way, its samples, its limit, its text."""

import io
import json
import math
import statistics
from collections import Counter
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from topklm.data import Choice, Document, Files, Mixture, Split, Tokenizer, TokenizerConfig, Tokens
from topklm.data.card_plot import plot_card
from topklm.data.card_text import card_text
from topklm.data.survey import Reservoir, data_card
from topklm.errors import UserError

SPLIT = Split(val_fraction=0.3)
TEXTS = [
    *(f"document number {i} " + "é" * (i % 7) * i for i in range(120)),
    "twice",
    "  \n\t ",
    "broken \ufffd here",
    "twice",
    "",
    "thrice",
    "broken \ufffd here",
    "thrice",
    "thrice",
    "Twice",
]
FULL = [text for text in TEXTS if text.strip()]


class Listed:
    """A source over texts, which says how far it was read."""

    name, fingerprint = "listed", "listed-1"

    def __init__(self, texts, skipped=None):
        self.texts, self.skipped, self.n_read = texts, skipped or {}, 0

    def documents(self, after=None):
        for number in range(after or 0, len(self.texts)):
            self.n_read = number + 1
            yield Document(f"doc{number}", self.texts[number], cursor=number + 1)


def card_of(texts=TEXTS, **options):
    return data_card(Listed(texts), Tokenizer.of_bytes(), SPLIT, **options)


def printed(card):
    file = io.StringIO()
    Console(file=file, width=200).print(card_text(card))
    return file.getvalue()


def test_totals():
    sizes = [len(text.encode()) for text in FULL]
    card = card_of()
    assert (card.total.documents, card.empty) == (len(FULL), 2)
    assert card.total.tokens == card.total.text_bytes == sum(sizes)  # a token for each byte
    assert card.bytes_per_token == 1
    assert card.copies == sum(count - 1 for count in Counter(FULL).values()) == 4
    assert card.damaged == 2
    assert card.notes == []


def test_bytes_per_token_and_vocabulary_of_a_bpe():
    tokenizer = Tokenizer.train(FULL, 280)
    card = data_card(Listed(TEXTS), tokenizer, SPLIT)
    counts = Counter(id_ for text in FULL for id_ in tokenizer.inner.encode(text).ids)
    assert card.token_counts.tolist() == [counts[id_] for id_ in range(tokenizer.vocab_size)]
    assert card.vocab_used == len(counts) < tokenizer.vocab_size
    assert card.total.tokens == sum(counts.values())
    assert card.bytes_per_token == pytest.approx(len("".join(FULL).encode()) / sum(counts.values()))


def test_half_a_character_is_damage():
    card = card_of(["fine", "half \ud800 a character"])
    assert card.damaged == 1
    assert [sample.text for sample in card.samples] == ["fine", "half a character"]
    assert json.dumps(card.to_json(), ensure_ascii=False).encode()
    assert printed(card).encode()


def test_lengths():
    sizes = sorted(len(text.encode()) for text in FULL)
    lengths = card_of().lengths
    assert (lengths.min, lengths.max) == (sizes[0], sizes[-1])
    assert lengths.median == statistics.median(sizes)
    assert lengths.mean == pytest.approx(statistics.fmean(sizes))
    assert lengths.p95 == pytest.approx(statistics.quantiles(sizes, n=20, method="inclusive")[-1])
    bins = list(zip(lengths.edges[:-1], lengths.edges[1:], strict=True))
    assert lengths.documents.tolist() == [sum(low <= size < high for size in sizes) for low, high in bins]
    assert lengths.tokens.tolist() == [sum(size for size in sizes if low <= size < high) for low, high in bins]
    assert lengths.documents.sum() == len(sizes)
    assert lengths.documents[0] > 0
    assert lengths.documents[-1] > 0


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 2), (9, 9), (2048, 2048), (1, 4096), (3, 100_001)])
def test_bins_are_log_spaced_and_hold_everything(shortest, longest):
    card = card_of(["a" * shortest, "b" * longest])
    edges = card.lengths.edges.tolist()
    assert edges[0] <= shortest < edges[1]
    assert edges[-2] <= longest < edges[-1]
    assert all(2**i in edges for i in range(20) if edges[0] <= 2**i <= edges[-1])  # so that octaves are whole bins
    assert all(1.1 < high / low < 1.26 for low, high in pairwise(edges) if low >= 8)  # the fourth root of 2 is 1.19
    assert card.lengths.documents.sum() == 2


def test_split_is_that_of_the_stores(tmp_path):
    choice = Choice(Listed(TEXTS), TokenizerConfig(name="bytes"), SPLIT, tmp_path)
    choice.build()
    card = card_of()
    for name, side in (("train", card.train), ("validation", card.validation)):
        manifest = json.loads((choice.folder / name / "manifest.json").read_text())
        assert side.documents == manifest["documents"] > 0
        assert side.tokens == manifest["tokens"] - manifest["documents"] - 1  # an end of text around each document
        assert side.text_bytes == manifest["text_bytes"]


def test_what_is_held_out_but_not_kept_is_told():
    validation = card_of().validation
    stored = validation.tokens + validation.documents
    for hold_out, told in ((stored, False), (stored - 1, True)):
        card = data_card(Listed(TEXTS), Tokenizer.of_bytes(), Split(0.3, hold_out))
        assert bool(card.notes) == told
    assert "data.hold_out_tokens" in card.notes[0]
    assert "data.hold_out_tokens" in printed(card)


def test_parts_of_a_mixture():
    texts = {"long": ["x" * 50 + str(i) for i in range(40)], "short": ["é" * 4 + str(i) for i in range(30)]}
    mixture = Mixture(
        {"long": {"source": Listed(texts["long"]), "weight": 3}, "short": {"source": Listed(texts["short"])}}
    )
    tokenizer = Tokenizer.train(["é" * 4 + "x" * 50], 262)
    card = data_card(mixture, tokenizer, SPLIT)
    found = card.to_json()["parts"]
    n_bytes = {name: len("".join(part).encode()) for name, part in texts.items()}
    n_tokens = {name: sum(len(tokenizer.inner.encode(text).ids) for text in part) for name, part in texts.items()}
    for name, asked in (("long", 0.75), ("short", 0.25)):
        assert found[name]["documents"] == len(texts[name])
        assert found[name]["asked_share"] == asked
        assert found[name]["text_share"] == pytest.approx(n_bytes[name] / sum(n_bytes.values()))
        assert found[name]["token_share"] == pytest.approx(n_tokens[name] / sum(n_tokens.values()))
    assert "long (asked: 75.0%)" in printed(card)


def test_no_parts_elsewhere():
    """A document's own field called source is no part of a mixture."""
    card = card_of()
    assert card.parts == {}
    assert "asked" not in printed(card)


def test_limit():
    source = Listed(TEXTS)
    card = data_card(source, Tokenizer.of_bytes(), SPLIT, limit=122)
    assert source.n_read == 122
    assert (card.total.documents, card.empty) == (121, 1)
    assert card.total.tokens == sum(len(text.encode()) for text in TEXTS[:121])
    assert "first 122 documents" in card.notes[0]
    assert "limit=122" in printed(card)


def test_a_limit_that_is_not_reached():
    assert card_of(limit=len(TEXTS) + 1).notes == []


def test_an_error_beyond_the_limit_is_not_met(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nbroken\n')
    assert data_card(Files(str(path)), Tokenizer.of_bytes(), SPLIT, limit=2).total.documents == 2
    with pytest.raises(UserError, match="line 3"):
        data_card(Files(str(path)), Tokenizer.of_bytes(), SPLIT, limit=3)


def test_what_is_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\nno json\n{"text": "\xff"}\n{"text": 7}\n{"text": " "}\n{"text": "\\ufffd"}\n')
    card = data_card(Files(str(path), on_error="skip"), Tokenizer.of_bytes(), SPLIT)
    assert card.skipped == {"line": 1, "non-UTF-8 line": 1, "row": 1}
    assert card.skipped_share == 3 / 6
    assert (card.total.documents, card.empty, card.damaged) == (2, 1, 1)
    assert "1 line, 1 non-UTF-8 line, 1 row, 50.00% of what was read" in printed(card)
    assert card.to_json()["not_utf8"] == {"documents": 2, "share": 2 / 5}


def test_a_source_without_text():
    with pytest.raises(UserError, match=r"The source listed holds no text \(2 lines, 1 empty left out\)"):
        data_card(Listed([" "], {"line": 2}), Tokenizer.of_bytes(), SPLIT)


def test_documents_that_come_as_tokens(tmp_path):
    tokenizer = Tokenizer.of_bytes()
    texts = ["héllo", "world", "héllo"]
    damaged = tokenizer.encode(["é"])[0][:1]  # half a character
    documents = [*tokenizer.encode(texts), damaged]
    stream = [id_ for ids in documents for id_ in (tokenizer.eot_id, *ids)]
    np.save(tmp_path / "a.npy", np.array(stream, dtype=np.uint16))
    card = data_card(Tokens(str(tmp_path / "a.npy"), tokenizer.eot_id), tokenizer, SPLIT)
    assert (card.total.documents, card.total.tokens, card.total.text_bytes) == (4, 18, 18)
    assert (card.copies, card.damaged) == (1, 1)
    assert [sample.text for sample in card.samples] == [*texts, "\ufffd"]


def test_tokens_of_another_tokenizer(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, 2, 257], dtype=np.uint16))
    with pytest.raises(UserError, match="holds the token 257, but the tokenizer has 257 tokens"):
        data_card(Tokens(str(tmp_path / "a.npy"), 0), Tokenizer.of_bytes(), SPLIT)


def test_samples_are_real_and_reproducible():
    first, again, other = (card_of(seed=seed).samples for seed in (3, 3, 4))
    assert first == again != other
    assert len({sample.id for sample in first}) == 5
    for sample in first:
        text = TEXTS[int(sample.id.removeprefix("doc"))]
        assert sample.tokens == len(text.encode())
        assert text.startswith(sample.text.removesuffix("…"))


def test_fewer_documents_than_samples():
    assert [sample.text for sample in card_of(["b", "a"]).samples] == ["b", "a"]


def test_a_sample_fits_a_terminal():
    (sample,) = card_of(["tab\tred \x1b[31m\r\n next\u202e [bold]x[/bold]" + "y" * 300]).samples
    assert sample.text.startswith("tab red [31m next [bold]x[/bold]yyy")
    assert sample.text.endswith("y…")
    assert len(sample.text) <= 201
    assert "[bold]x[/bold]" in printed(card_of(["[bold]x[/bold]"]))


def test_a_reservoir_is_uniform():
    items, size, draws = 20, 5, 4000
    counts = Counter()
    for seed in range(draws):
        reservoir = Reservoir(size, seed)
        for item in range(items):
            reservoir.offer(lambda item=item: item)
        sample = reservoir.sample
        assert sample == sorted(set(sample))
        assert len(sample) == size
        counts.update(sample)
    expected = draws * size / items
    deviation = math.sqrt(expected * (1 - size / items))
    assert all(abs(counts[item] - expected) < 5 * deviation for item in range(items))


def test_only_what_is_taken_is_made():
    made = []
    reservoir = Reservoir(2, seed=0)
    for item in range(1000):
        reservoir.offer(lambda item=item: made.append(item))
    assert 2 <= len(made) < 60  # about 2 (1 + ln 500) = 14


def test_progress():
    seen = []
    card_of(on_read=seen.append)
    assert seen == list(range(1, len(TEXTS) + 1))


def test_text_says_what_the_json_says():
    card = card_of(tokenizer_name="a token for each byte")
    found, text = json.loads(json.dumps(card.to_json())), printed(card)
    lengths = found["lengths"]
    for figure in (
        f"documents       │ {found['documents']:,} ",
        f"empty           │ {found['empty']:,}, left out",
        f"tokens          │ {found['tokens']:,},",
        f"text            │ {found['text_bytes']:,} bytes",
        f"bytes per token │ {found['bytes_per_token']:.3f}",
        f"copies          │ {found['copies']['documents']} documents ({found['copies']['share']:.2%})",
        f"damaged         │ {found['damaged']['documents']} documents ({found['damaged']['share']:.2%})",
        f"{found['vocabulary']['used']} of 257 tokens occur ({found['vocabulary']['share']:.1%})",
        f"median {lengths['median']:,.1f}, mean {lengths['mean']:,.1f}",
        "a token for each byte, fingerprint " + found["tokenizer"]["fingerprint"],
        *(sample["text"][:15] for sample in found["samples"]),
        *(f"{side['documents']:,} │" for side in found["split"].values()),
    ):
        assert figure in text
    octave = sum(
        count for edge, count in zip(lengths["edges"][:-1], lengths["documents"], strict=True) if 16 <= edge < 32
    )
    assert octave == sum(16 <= len(text.encode()) < 32 for text in FULL)
    (row,) = [line for line in text.splitlines() if "16 - 31" in line]
    assert row.split("│")[2].strip() == str(octave)


@pytest.mark.parametrize("texts", [FULL, ["a"], ["a" * 2048, "b" * 2048], ["a", "bc" * 200_000]])
def test_picture(texts, tmp_path):
    plot_card(card_of(texts), tmp_path / "card.png")
    pixels = matplotlib.image.imread(tmp_path / "card.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
