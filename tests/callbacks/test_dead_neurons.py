"""Dead neurons, beside a list of which neuron fired when."""

import pytest
import torch

from topklm.callbacks import DeadNeurons
from topklm.callbacks.dead_neurons import short


def fire(module, step):
    """A training forward pass; returns which neurons of each site fired, found by looking at its output."""
    fired = {}
    hooks = [
        site.register_forward_hook(
            lambda site, _, y: fired.__setitem__(site.label, (y.detach() != 0).flatten(0, 1).any(0))
        )
        for site in module.model.sites
    ]
    module.model(torch.randint(0, 97, (1, 4), generator=torch.Generator().manual_seed(step)))
    for hook in hooks:
        hook.remove()
    module.global_step = step
    return fired


def test_the_share_that_fired_on_none_of_the_last_tokens(module, trainer):
    watched, callback = module(topk={"k": 1}, tokens_per_step=4), DeadNeurons(window_tokens=12)
    callback.on_train_start(trainer(), watched)
    history = []
    for step in range(1, 9):
        history.append(fire(watched, step))
        callback.on_train_batch_end(trainer(), watched)
        if step < 3:
            assert not [name for name in watched.row if "dead" in name]  # the window has not passed once
            watched.log_row()
            continue
        assert watched.row["sparsity/dead_window_tokens"] == 12
        for label in ("layer_00", "layer_01"):
            alive = torch.stack([fired[label] for fired in history[-3:]]).any(0)
            assert watched.row[f"sparsity/dead_fraction/{label}"] == pytest.approx(1 - alive.float().mean().item())
        watched.log_row()
    assert len({row["sparsity/dead_fraction/layer_00"] for _, row in watched.rows[2:]}) > 1


def test_several_windows_each_from_when_it_has_passed(module, trainer):
    watched, callback = module(topk={"layers": [0]}), DeadNeurons(window_tokens=100, more_windows=[1000, 96_123])
    callback.on_train_start(trainer(), watched)
    watched.model.sites[0].tokens_since_fired_d.copy_(torch.tensor([0] * 4 + [500] * 6 + [5000] * 5 + [10**6]))
    rows = {}
    for watched.global_step in (2, 3, 30, 3000):  # of 48 tokens
        callback.on_train_batch_end(trainer(), watched)
        rows[watched.global_step] = {n.split("/")[1]: value for n, value in watched.row.items() if "dead_fraction" in n}
        watched.log_row()
    assert rows == {
        2: {},
        3: {"dead_fraction": 12 / 16},
        30: {"dead_fraction": 12 / 16, "dead_fraction_1k": 6 / 16},
        3000: {"dead_fraction": 12 / 16, "dead_fraction_1k": 6 / 16, "dead_fraction_96123": 1 / 16},
    }


def test_the_windows_of_a_run_that_is_long_enough(module, trainer):
    watched, callback = module(topk={"layers": [0]}, steps=10**6), DeadNeurons()
    callback.on_train_start(trainer(), watched)
    watched.global_step = 10**6
    callback.on_train_batch_end(trainer(), watched)
    found = {name.split("/")[1] for name in watched.row if "dead_fraction" in name}
    assert found == {"dead_fraction", "dead_fraction_1M", "dead_fraction_10M"}
    assert watched.row["sparsity/dead_window_tokens"] == 10_000_000


@pytest.mark.parametrize("ranks", [1, 2])
def test_how_long_ago_neurons_fired(module, trainer, ranks):
    since = torch.tensor([0, 1, 9] + [1000] * 10 + [20_000] * 2 + [10**12])
    watched, callback = module(topk={"layers": [0]}), DeadNeurons()
    callback.on_train_start(trainer(), watched)
    watched.model.sites[0].tokens_since_fired_d.copy_(since)
    watched.global_step = 1
    here = trainer(ranks, reduce=minimum_with([since, since]))
    callback.on_train_batch_end(here, watched)
    assert watched.row["sparsity/tokens_since_fired_median/layer_00"] == 1000 * ranks
    assert watched.row["sparsity/tokens_since_fired_max/layer_00"] == 10**12 * ranks
    callback.on_validation_end(here, watched)
    counts, edges = watched.histograms["sparsity/tokens_since_fired_log10/layer_00"]
    assert counts.sum() == 16
    assert counts[-1] == 1
    if ranks == 1:
        assert (counts[0], counts[(edges[:-1] <= 3) & (edges[1:] > 3)].item()) == (2, 10)


def test_no_histogram_where_sites_do_not_count(module, trainer):
    watched, callback = module(), DeadNeurons()
    watched.global_step = 1
    for site in watched.model.sites:
        site.record = False
    callback.on_validation_end(trainer(), watched)
    assert watched.histograms == {}


def test_no_histogram_before_the_first_step(module, trainer):
    watched, callback = module(), DeadNeurons()
    callback.on_validation_end(trainer(), watched)
    assert watched.histograms == {}
    watched.global_step = 1
    callback.on_validation_end(trainer(), watched)
    assert len(watched.histograms) == 2


def test_only_at_logged_steps_and_where_sites_count(module, trainer):
    watched, callback = module(log_every=2), DeadNeurons(window_tokens=1)
    callback.on_train_start(trainer(), watched)
    fire(watched, 1)
    callback.on_train_batch_end(trainer(), watched)
    assert watched.row == {}
    for site in watched.model.sites:
        site.record = False
    watched.global_step = 2
    callback.on_train_batch_end(trainer(), watched)
    assert watched.row == {}


@pytest.mark.parametrize(
    ("steps", "given", "expected"),
    [(100, None, 480), (1, None, 4), (10**6, None, 10_000_000), (100, 77, 77), (10**6, 77, 77)],
)
def test_the_window(module, trainer, steps, given, expected):
    callback = DeadNeurons(window_tokens=given)
    callback.on_train_start(trainer(), module(steps=steps))
    assert callback.window_tokens == expected


def minimum_with(others):
    """The strategy of a rank beside one whose counters are ``others``, in the order in which they are asked for."""
    queue = list(others)

    def reduce(tensor, op):
        assert op == "min"
        return torch.minimum(tensor, queue.pop(0))

    return reduce


@pytest.mark.parametrize("saved_by", [1, 2])
@pytest.mark.parametrize("resumed_by", [1, 2])
def test_a_checkpoint_counts_tokens_of_the_whole_run(module, trainer, saved_by, resumed_by):
    """Ranks count their own share of the tokens: one of two saw half of what one alone sees."""
    tokens = torch.arange(16) * 100  # of the run, since each neuron fired
    watched = module()
    for site in watched.model.sites:
        site.tokens_since_fired_d.copy_(tokens // saved_by)
    others = [torch.full((16,), 10**9) for _ in watched.model.sites]
    checkpoint = {}
    DeadNeurons().on_save_checkpoint(trainer(saved_by, reduce=minimum_with(others)), watched, checkpoint)
    assert torch.equal(checkpoint["tokens_since_fired"]["layer_01"], tokens)

    resumed, callback = module(), DeadNeurons(window_tokens=800)
    callback.on_load_checkpoint(trainer(resumed_by), resumed, checkpoint)  # training does not start after the last step
    assert torch.equal(resumed.model.sites[1].tokens_since_fired_d, tokens // resumed_by)
    callback.on_train_start(trainer(resumed_by), resumed)
    resumed.global_step = 50
    others = [torch.full((16,), 10**9) for _ in watched.model.sites]
    callback.on_train_batch_end(trainer(resumed_by, reduce=minimum_with(others)), resumed)
    assert resumed.row["sparsity/dead_fraction/layer_01"] == 8 / 16  # 800, 900, ..., 1500


def test_a_neuron_lives_that_fires_on_any_rank(module, trainer):
    watched, callback = module(topk={"layers": [0]}), DeadNeurons(window_tokens=100)
    callback.on_train_start(trainer(2), watched)
    watched.model.sites[0].tokens_since_fired_d.copy_(torch.tensor([60] * 8 + [10] * 8))
    watched.global_step = 50
    other = torch.tensor(([10] * 4 + [90] * 4) * 2)
    callback.on_train_batch_end(trainer(2, reduce=minimum_with([other])), watched)
    assert watched.row["sparsity/dead_fraction/layer_00"] == 4 / 16  # 2 ranks x 60 tokens
    assert watched.model.sites[0].tokens_since_fired_d.tolist() == [10] * 4 + [60] * 4 + [10] * 8


@pytest.mark.parametrize("window", [0, -1, 2.5, True, "10M"])
def test_a_window_that_is_none(window):
    with pytest.raises(ValueError, match=f"callbacks.dead_neurons.window_tokens={window}"):
        DeadNeurons(window_tokens=window)


@pytest.mark.parametrize("windows", [5, "10M", [0], [True], [1000, 1000], ["1M"], None])
def test_other_windows_that_are_none(windows):
    with pytest.raises(
        ValueError, match="callbacks.dead_neurons.more_windows=.*: give a list of different whole numbers"
    ):
        DeadNeurons(more_windows=windows)


@pytest.mark.parametrize(
    ("tokens", "name"), [(10**7, "10M"), (500_000, "500k"), (1_234_567, "1234567"), (2 * 10**9, "2B"), (7, "7")]
)
def test_windows_in_names(tokens, name):
    assert short(tokens) == name
