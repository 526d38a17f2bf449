"""Continuations of prompts: beside decoding without a cache, and where they are written."""

import contextlib
import json
import random
from types import SimpleNamespace

import pytest
import torch

from topklm.callbacks import Samples


@pytest.fixture
def speak(module, trainer):
    """speak(callback): what it leaves after a validation. A token is a character; 0 begins a text."""

    def run(callback, watched=None, **options):
        watched = watched or module()
        watched.global_step = 7
        stand_in = trainer(precision_plugin=SimpleNamespace(val_step_context=contextlib.nullcontext), **options)
        callback.encode = lambda text: [0, *(ord(letter) - 31 for letter in text)]
        callback.decode = lambda ids: "".join(chr(id_ + 31) for id_ in ids)
        callback.on_validation_end(stand_in, watched)
        path = stand_in.default_root_dir / "samples.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return run


def test_the_likeliest_continuation(speak, module):
    watched = module()
    lines = speak(Samples(["abc", "x"], max_new_tokens=5, temperature=0), watched)
    assert [(line["step"], line["prompt"]) for line in lines] == [(7, "abc"), (7, "x")]
    for line in lines:
        ids = [0, *(ord(letter) - 31 for letter in line["prompt"])]
        for letter in line["continuation"]:
            with torch.no_grad():
                best = watched.model.eval()(torch.tensor([ids]))[0, -1].argmax().item()
            assert letter == chr(best + 31)
            ids.append(best)
        assert len(line["continuation"]) == 5


def test_columns_say_the_same_and_leave_nothing(speak, module):
    dense, sparse = (speak(Samples(["abc"], 12, sparse=sparse))[-1]["continuation"] for sparse in (False, True))
    assert dense == sparse
    watched = module()
    speak(Samples(["abc"], 3, sparse=True), watched)
    assert all("forward" not in vars(part) for part in watched.model.modules())


def test_a_seed_of_its_own(speak):
    before = torch.get_rng_state()
    once, again, other = (speak(Samples(["ab"], 12, 1.0, 1.0, seed))[-1]["continuation"] for seed in (0, 0, 1))
    assert once == again != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("length", [1, 11, 12, 23, 24, 100])
@pytest.mark.parametrize("new", [1, 6, 12, 20, 100])
def test_a_long_prompt_keeps_its_end(speak, length, new):
    """Never an empty continuation, in a window of 24 tokens: half of it, or as many as were asked for."""
    rng = random.Random(0)
    prompt = "".join(rng.choice("abcdefgh") for _ in range(length))
    (line,) = speak(Samples([prompt], new, temperature=0))
    assert len(line["continuation"]) == min(new, max(12, 24 - (length + 1)))


def test_of_a_long_prompt_the_end_decides(speak):
    end = "cabbage"
    one, other = (speak(Samples([start * 30 + end * 2], 12, temperature=0))[-1]["continuation"] for start in "xy")
    assert one == other
    assert one != speak(Samples(["x" * 30], 12, temperature=0))[-1]["continuation"]


def test_only_one_rank_speaks_and_loggers_of_text_hear_it(speak):
    heard = []
    loggers = [SimpleNamespace(), SimpleNamespace(log_text=lambda key, columns, data: heard.append((columns, data)))]
    callback = Samples(["ab"], 3)
    (line,) = speak(callback, loggers=loggers)
    assert callback.latest == [("ab", line["continuation"])]
    assert heard == [(["step", "prompt", "continuation"], [[7, "ab", line["continuation"]]])]
    assert speak(Samples(["ab"]), global_rank=1) == [line]  # nothing was added


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("temperature", -0.1, "a number of 0 or more"),
        ("temperature", "hot", "a number of 0 or more"),
        ("temperature", float("nan"), "a number of 0 or more"),
        ("temperature", float("inf"), "a number of 0 or more"),
        ("temperature", True, "a number of 0 or more"),
        ("top_p", 0, "a share"),
        ("top_p", 1.1, "a share"),
        ("top_p", None, "a share"),
        ("max_new_tokens", 0, "a whole number"),
        ("max_new_tokens", 2.5, "a whole number"),
        ("seed", -1, "a whole number"),
        ("sparse", "yes", "auto, true or false"),
        ("sparse", None, "auto, true or false"),
        ("prompts", "The city", "a list of texts"),
        ("prompts", 5, "a list of texts"),
        ("prompts", None, "a list of texts"),
    ],
)
def test_impossible_settings(setting, value, wanted):
    with pytest.raises(ValueError, match=f"callbacks.samples.{setting}={value}: give {wanted}"):
        Samples(**{setting: value})
    with pytest.raises(ValueError, match="callbacks.samples.prompts="):
        Samples(prompts=["a", 1905])


def test_what_is_just_allowed():
    Samples(prompts=[], max_new_tokens=1, temperature=0, top_p=1)
