"""Lets TopK layers trade k under one budget, by the energy that each keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L

from ..model import TopKSite
from .base import Watched, is_number, require, require_flag, require_whole, watched

CHECKPOINT_KEY = "adaptive_k"


class AdaptiveK(L.Callback):
    """Moves k between the layers once all have their final k, towards equal shares of energy kept; their sum stays
    what was configured. Sites of different names do not trade.

    After at least ``every_n_steps`` steps, at a logged one, sites of one name are ordered by their mean
    ``sparsity/energy_kept`` since the last move. Of those that their bounds let, the one that keeps most gives to the
    one that keeps least, the second to the last but one, and so on, as long as the two differ by more than
    ``tolerance``: ``move`` of the smaller configured k, at least 1, as far as the bounds allow. The decision rests on
    logged means, which are the same on every rank.

    Args:
        enabled: trade at all. every_n_steps, move, tolerance: as above.
        min_share, max_share: bounds of a site's k, as shares of the configured one; its width bounds it too.
        until: share of training after which k stays.
    """

    def __init__(
        self,
        enabled: bool = True,
        every_n_steps: int = 20,
        move: float = 0.05,
        tolerance: float = 0.01,
        min_share: float = 0.5,
        max_share: float = 2.0,
        until: float = 0.9,
    ) -> None:
        require_flag("adaptive_k.enabled", enabled)
        require_whole("adaptive_k.every_n_steps", every_n_steps)
        require(is_number(move, 0, 1) and move > 0, "adaptive_k.move", move, "a share above 0 and at most 1")
        require(is_number(tolerance, 0), "adaptive_k.tolerance", tolerance, "a number of 0 or more")
        require(is_number(min_share, 0, 1), "adaptive_k.min_share", min_share, "a share from 0 to 1")
        require(is_number(max_share, 1), "adaptive_k.max_share", max_share, "a number of 1 or more")
        require(is_number(until, 0, 1), "adaptive_k.until", until, "a share of training from 0 to 1")
        self.enabled, self.every_n_steps, self.until = enabled, every_n_steps, until
        self.move, self.tolerance, self.min_share, self.max_share = move, tolerance, min_share, max_share
        self.energy: dict[str, float] = {}  # sums over the rows since the last move
        self.rows, self.moved_at = 0, 0
        self.settled = False  # whether the row being gathered is of steps at the final k alone

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if not self.enabled or not module.is_log_step:
            return
        sites = module.model.sites
        annealed = all(module.row.get(f"k/{site.label}") == site.k_final for site in sites)
        if not (annealed and self.settled):
            self.settled = annealed
            self._begin(module.global_step)
            return
        for site in sites:
            self.energy[site.label] = (
                self.energy.get(site.label, 0.0) + module.row[f"sparsity/energy_kept/{site.label}"]
            )
        self.rows += 1

    def _begin(self, step: int) -> None:
        self.energy, self.rows, self.moved_at = {}, 0, step

    # At the start of a step, so that the step before, its validation and its checkpoint have one k.
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        step = module.global_step
        due = self.rows > 0 and module.is_log_step and step - self.moved_at >= self.every_n_steps
        if not self.enabled or not due or step > self.until * module.steps:
            return
        for name in module.model.config.topk.sites:
            self._trade(module, [site for site in module.model.sites if site.name == name])
        self._begin(step)

    def _trade(self, module: Watched, sites: Sequence[TopKSite]) -> None:
        config = module.model.config
        blocks = config.topk.topk_layers(config.n_layers)
        configured = [config.topk.final_k(blocks.index(site.layer), site.width) for site in sites]
        after = trade(
            [site.k_final for site in sites],
            [self.energy[site.label] / self.rows for site in sites],
            least=[max(1, math.ceil(self.min_share * k)) for k in configured],
            most=[min(site.width, math.floor(self.max_share * k)) for site, k in zip(sites, configured, strict=True)],
            amounts=[max(1, round(self.move * k)) for k in configured],
            tolerance=self.tolerance,
        )
        for site, k in zip(sites, after, strict=True):
            site.k_final = k

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.enabled:
            checkpoint[CHECKPOINT_KEY] = {
                "k": {site.label: site.k_final for site in watched(pl_module).model.sites},
                "energy": dict(self.energy),
                "rows": self.rows,
                "moved_at": self.moved_at,
                "settled": self.settled,
            }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Here and not when training starts, which it does not where the checkpoint is of the last step.
        state = checkpoint.get(CHECKPOINT_KEY)
        if self.enabled and state is not None:
            self.energy, self.rows, self.moved_at = dict(state["energy"]), state["rows"], state["moved_at"]
            self.settled = state.get("settled", True)  # which a version before did not ask
            for site in watched(pl_module).model.sites:
                site.k_final = state["k"][site.label]


def trade(
    ks: Sequence[int],
    energy: Sequence[float],
    *,
    least: Sequence[int],
    most: Sequence[int],
    amounts: Sequence[int],
    tolerance: float,
) -> list[int]:
    """k of each site after one round of trade, with the same sum. All arguments but the tolerance are per site.

    Args:
        ks, energy: k, and the mean share of energy kept with it. least, most: bounds of k. amounts: what a site deals
            in; the smaller of two counts.
        tolerance: a difference in energy that is let be.
    """
    after = list(ks)
    order = sorted(range(len(after)), key=lambda site: (energy[site], site))
    takers = [site for site in order if ks[site] < most[site]]
    givers = [site for site in reversed(order) if ks[site] > least[site]]
    for poor, rich in zip(takers, givers, strict=False):
        if energy[rich] - energy[poor] <= tolerance:  # so that no site is in two trades
            break
        amount = min(amounts[poor], amounts[rich], most[poor] - after[poor], after[rich] - least[rich])
        after[poor] += amount
        after[rich] -= amount
    return after
