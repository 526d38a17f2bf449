"""Information on the topic, beside sums over a joint table, and with a neuron planted that stands for one."""

import math

import pytest
import torch

from topklm.interp import mutual_information, topic_information


def from_joint(fired_cd, tokens_c):
    """sum p(f, c) log2 p(f, c) / (p(f) p(c)), cell by cell."""
    total, bits = tokens_c.sum().item(), []
    for neuron in range(fired_cd.shape[1]):
        value = 0.0
        fired = fired_cd[:, neuron]
        for counts_c in (fired, tokens_c - fired):
            cells = (counts_c.double() / total).tolist()
            for cell, n in zip(cells, tokens_c.tolist(), strict=True):
                if cell:
                    value += cell * math.log2(cell / (sum(cells) * n / total))
        bits.append(value)
    return bits


def test_beside_the_joint_table():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([100, 7, 0, 350])
    fired = (torch.rand(4, 6, generator=generator) * (tokens[:, None] + 1)).floor().long()
    fired[:, 0], fired[:, 1] = 0, tokens  # never, always
    bits = mutual_information(fired, tokens)
    assert bits.tolist() == pytest.approx(from_joint(fired, tokens), abs=1e-12)
    assert bits[:2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert (bits[2:] > 0).all()


def test_by_hand():
    tokens = torch.tensor([50, 50])
    assert mutual_information(torch.tensor([[50], [0]]), tokens).tolist() == [1]  # it is the topic
    assert mutual_information(torch.tensor([[20], [20]]), tokens).item() == pytest.approx(0, abs=1e-12)
    # Fires on half of one topic and on none of the other: H(1/4) less half a bit.
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)) - 0.5
    assert mutual_information(torch.tensor([[25], [0]]), tokens).item() == pytest.approx(expected)


@pytest.fixture
def planted():
    """200 documents of 4 topics; neuron 0 fires in those of topic 2, the other 30 at random."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randint(0, 4, (200,), generator=generator)
    tokens = torch.randint(20, 60, (200,), generator=generator)
    rates = torch.full((200, 31), 0.2)
    rates[:, 0] = torch.where(topic == 2, 0.9, 0.02)
    fired = torch.binomial(tokens[:, None].expand(200, 31).float(), rates, generator=generator)
    return fired, tokens, topic


def test_a_planted_neuron_stands_out(planted):
    found = topic_information(*planted, shuffles=6, seed=0)
    assert found.bits_d.argmax() == 0
    assert found.bits_d[0] > 0.3
    assert found.shuffled_sd.shape == (6, 31)
    assert found.shuffled_sd[:, 0].max() < 0.1 * found.bits_d[0]
    assert found.top(1) == found.bits_d[0]
    assert found.top(2) == pytest.approx(found.bits_d.sort().values[-2:].mean().item())
    assert found.top_shuffled(1) == pytest.approx(found.shuffled_sd.max(1).values.mean().item())
    assert found.median == found.bits_d.sort().values[15]
    assert found.median_shuffled == pytest.approx(found.median, rel=0.5)  # most know nothing


def test_shuffles_keep_each_document_in_one_piece():
    """Neurons that know the document and not the topic are no better than with shuffled topics."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((40,), 100)
    fired = (torch.rand(40, 50, generator=generator) < 0.5).float() * 100
    found = topic_information(fired, tokens, torch.randint(0, 5, (40,), generator=generator), shuffles=20, seed=0)
    assert found.bits_d.mean() > 0.05  # over single tokens it would be about 5/(2 * 4000 * ln 2)
    assert found.median == pytest.approx(found.median_shuffled, rel=0.3)


def test_documents_without_a_topic_are_left_out(planted):
    fired, tokens, topic = planted
    more = (
        torch.cat((fired, fired[:50] + 1)),
        torch.cat((tokens, tokens[:50])),
        torch.cat((topic, -torch.ones(50).long())),
    )
    expected = topic_information(fired, tokens, topic, shuffles=2, seed=0)
    found = topic_information(*more, shuffles=2, seed=0)
    assert torch.equal(found.bits_d, expected.bits_d)
    assert torch.equal(found.shuffled_sd, expected.shuffled_sd)


def test_nothing_to_tell(planted):
    fired, tokens, topic = planted
    assert topic_information(fired, tokens, torch.zeros_like(topic), shuffles=2, seed=0) is None
    assert topic_information(fired, tokens, torch.full_like(topic, -1), shuffles=2, seed=0) is None


def test_a_seed_of_its_own(planted):
    before = torch.get_rng_state()
    one, again, other = (topic_information(*planted, shuffles=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.shuffled_sd, again.shuffled_sd)
    assert not torch.equal(one.shuffled_sd, other.shuffled_sd)
    assert torch.equal(torch.get_rng_state(), before)
