"""How much a neuron's firing tells of the topic of the document it fires in: mutual information, beside what shuffled
topics give.

The topics of a corpus are a ground truth for what neurons stand for. Tokens of one document are not independent, so
few documents give every neuron some information by chance; the same topics dealt out to other documents show how much.
Shapes: g documents, c topics, d neurons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def mutual_information(fired_cd: Tensor, tokens_c: Tensor) -> Tensor:
    """``I(F; C) = H(F) - sum_c p(c) H(F | c)`` over tokens, F being whether the neuron fires and C the topic.

    Args:
        fired_cd: (c, d) tokens of each topic on which each neuron fires. tokens_c: (c,) tokens of each topic, not all
            zero.

    Returns:
        (d,) float64 bits, 0 to 1: the plug-in estimate.
    """
    fired_cd, tokens_c = fired_cd.double(), tokens_c.double()
    total = tokens_c.sum()
    rate_cd = fired_cd / tokens_c.clamp_min(1)[:, None]
    return (_bits(fired_cd.sum(0) / total) - (tokens_c / total) @ _bits(rate_cd)).clamp_min(0)


def _bits(p: Tensor) -> Tensor:
    """Entropy of a coin that falls with probability p on one side."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


@dataclass(frozen=True)
class TopicInformation:
    """Mutual information of a site's neurons with the topic, in bits, (d,) float64.

    Attributes:
        bits_d: with the documents' own topics. shuffled_sd: with shuffled ones, (shuffles, d).
    """

    bits_d: Tensor
    shuffled_sd: Tensor

    @property
    def median(self) -> float:
        return self.bits_d.median().item()

    @property
    def median_shuffled(self) -> float:
        """The mean over shuffles of the median over neurons."""
        return self.shuffled_sd.median(1).values.mean().item()

    def top(self, n: int) -> float:
        """The mean of the n neurons with the most."""
        return self.bits_d.topk(min(n, len(self.bits_d))).values.mean().item()

    def top_shuffled(self, n: int) -> float:
        """The same under shuffled topics, the n chosen anew under each, averaged over shuffles."""
        return self.shuffled_sd.topk(min(n, self.shuffled_sd.shape[1]), dim=1).values.mean().item()


def topic_information(
    fired_gd: Tensor, tokens_g: Tensor, topic_g: Tensor, shuffles: int, seed: int
) -> TopicInformation | None:
    """Mutual information of firing and topic.

    Args:
        fired_gd: (g, d) tokens of each document on which each neuron fires. tokens_g: (g,) its tokens.
        topic_g: (g,) int64, the number of its topic; -1 where it has none, which leaves the document out.
        shuffles: how often topics are dealt out anew over the documents. seed: of the dealing.

    Returns:
        None where fewer than two topics occur: then there is nothing to tell.
    """
    known_g = (topic_g >= 0) & (tokens_g > 0)
    fired_gd, tokens_g, topic_g = fired_gd[known_g].double(), tokens_g[known_g].double(), topic_g[known_g]
    if len(topic_g.unique()) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)

    def information(topic_g: Tensor) -> Tensor:
        topics = int(topic_g.max()) + 1
        fired_cd = fired_gd.new_zeros(topics, fired_gd.shape[1]).index_add_(0, topic_g, fired_gd)
        return mutual_information(fired_cd, tokens_g.new_zeros(topics).index_add_(0, topic_g, tokens_g))

    shuffled = [information(topic_g[torch.randperm(len(topic_g), generator=generator)]) for _ in range(shuffles)]
    return TopicInformation(information(topic_g), torch.stack(shuffled))
