"""Callbacks that need the telemetry of others are refused without it."""

import pytest

from topklm.callbacks import AdaptiveK, DeadNeurons, Revive, SelectionBias, Sparsity, check_together

ALL = (AdaptiveK, Revive, SelectionBias)


@pytest.mark.parametrize(
    ("kind", "name"), [(Revive, "revive"), (SelectionBias, "selection_bias"), (AdaptiveK, "adaptive_k")]
)
@pytest.mark.parametrize("others", [[], [DeadNeurons()], [Sparsity(enabled=False), DeadNeurons()]])
def test_it_needs_what_counts(kind, name, others):
    with pytest.raises(ValueError, match=rf"callbacks.{name}.enabled=true .* needs .*callbacks.sparsity.enabled=true"):
        check_together([kind(), *others])
    check_together([kind(enabled=False), *others])


@pytest.mark.parametrize("kind", [Revive, SelectionBias])
def test_silence_is_told_by_the_counters_of_dead_neurons(kind):
    with pytest.raises(ValueError, match="needs callbacks.dead_neurons and"):
        check_together([Sparsity(), kind()])


def test_what_goes_together():
    check_together([])
    check_together([AdaptiveK(), Sparsity()])
    check_together([*(kind() for kind in ALL), Sparsity(), DeadNeurons()])
