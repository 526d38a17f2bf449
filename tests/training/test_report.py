"""The end of a run, as it is printed."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from topklm.training.report import print_report

ROW = {"site": "resid_post_mlp", "topk": True, "dead_window_tokens": 5000}
SUMMARY = {
    "layers": [
        {**ROW, "layer": 0, "k": 16, "l0": 15.96, "dead_fraction": 0.125, "energy_kept": 0.871},
        {**ROW, "layer": 1, "k": None, "l0": None, "dead_fraction": None, "energy_kept": None, "topk": False},
    ],
    "val_loss": 4.12339,
    "val_loss_final_k": 4.12339,
    "val_bpb": 1.98761,
    "val_tokens": 2048,
    "tokens": 1_234_567,
    "steps": 600,
    "params": 987_654,
    "tokens_per_second": 54_321.9,
}


@pytest.fixture
def printed():
    def run(summary=SUMMARY, xz=None, samples=(), width=200):
        text = io.StringIO()
        print_report(Console(file=text, width=width), summary, xz, samples, Path("runs/[x]"), 12.6)
        return text.getvalue()

    return run


def test_the_table(printed):
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed().splitlines() if "resid" in line]
    assert rows == [
        ["0", "resid_post_mlp", "16", "16.0", "12.5%", "87.1%"],
        ["1", "resid_post_mlp", "dense", "-", "-", "-"],
    ]
    assert "(dead: fired on no token over the last 5,000 tokens)" in " ".join(printed().split())


def test_each_figure_says_what_it_is_on(printed):
    """The loss is on as many tokens as were validated, xz's figures on the whole split, of which that may be a part."""
    text = printed(xz={"plain": 2.6875, "primed": 2.0343})
    assert "validation loss  4.1234 nats per token = 1.9876 bits per byte, over 2,048 tokens\n" in text
    assert (
        "xz -9e reaches   2.6875 bits per byte on the whole validation text, 2.0343 with the training text as its "
        "dictionary\n" in text
    )
    assert "same text" not in text
    assert "xz" not in printed()


def test_cost_samples_and_place(printed):
    text = printed(samples=[("The [b]city", "of\nlight [/] x")])
    assert "1,234,567 tokens in 600 steps, 987,654 parameters, 54,322 tokens/s, 13 s in all\n" in text
    assert "The [b]cityof light [/] x\n" in text  # one line, and brackets as they are
    assert "run directory    runs/[x]\n" in text


def test_what_is_not_known_is_left_out(printed):
    rows = [{**row, "dead_window_tokens": None} for row in SUMMARY["layers"]]
    text = printed({**SUMMARY, "layers": rows, "val_loss": None, "val_bpb": None, "tokens_per_second": None})
    assert "validation loss" not in text
    assert "tokens/s" not in text
    assert "fired on no token)" in text


def test_lines_are_not_broken_in_a_narrow_terminal(printed):
    assert "1.9876 bits per byte, over 2,048 tokens\n" in printed(width=30)


def test_a_run_that_ended_while_k_was_falling_says_what_the_final_k_costs(printed):
    assert "final k" not in printed()
    assert "5.5000 nats per token with the final k" in printed({**SUMMARY, "val_loss_final_k": 5.5})
