"""What fires on a sample of text: one pass of the model over it, without a trace in training.

Shapes: w windows, t position, d a site's width, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..model import TopKSite, TopKTransformer, capture, document_numbers
from .effective_rank import SecondMoments
from .sample import TokenSample

PASS_TOKENS = 8192  # per forward pass


@dataclass
class SiteActivity:
    """What one site did on the sample.

    Attributes:
        site: the site. fired_wtd: (w, t, d) bool on the model's device, whether each neuron was non-zero.
        moments: the covariance of its activations.
    """

    site: TopKSite
    fired_wtd: Tensor
    moments: SecondMoments = field(default_factory=SecondMoments)

    @property
    def fired_nd(self) -> Tensor:
        """(n, d): all tokens of the sample."""
        return self.fired_wtd.flatten(0, 1)

    def fired_by_document(self, document_wt: Tensor, documents: int) -> Tensor:
        """(documents, d) int64 on the CPU: tokens of each document on which each neuron fired."""
        counts_gd = torch.zeros(documents, self.site.width, device=self.fired_wtd.device)  # exact up to 2^24
        numbers_n = document_wt.flatten().to(counts_gd.device)
        return counts_gd.index_add_(0, numbers_n, self.fired_nd.float()).long().cpu()


@torch.no_grad()
def observe(model: TopKTransformer, sample: TokenSample, eot_id: int | None = None) -> dict[str, SiteActivity]:
    """Runs the model in evaluation mode over the sample at the k in force, and notes what fires at each site, by label
    in the order of ``model.sites``; empty for a dense twin. Neither random state nor the sites' counters change.

    Args:
        eot_id: the token at which attention begins anew; None lets it cross documents.
    """
    found = {site.label: SiteActivity(site, torch.zeros(0)) for site in model.sites}
    if not found:
        return found
    device = next(model.parameters()).device
    fired: dict[str, list[Tensor]] = {label: [] for label in found}
    was_training = model.training
    model.eval()
    try:
        with capture(model) as outputs:
            for ids_wt in sample.ids_wt.split(max(1, PASS_TOKENS // sample.ids_wt.shape[1])):
                ids_wt = ids_wt.to(device)
                model.hidden(ids_wt, documents_bt=None if eot_id is None else document_numbers(ids_wt, eot_id))
                for label, activity in found.items():
                    y_wtd = outputs.pop(label)
                    fired[label].append(y_wtd != 0)
                    activity.moments.add(y_wtd.flatten(0, 1))
    finally:
        model.train(was_training)
    for label, activity in found.items():
        activity.fired_wtd = torch.cat(fired[label])
    return found
