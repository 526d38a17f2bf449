"""The data card command: text, JSON and picture are there and say the same."""

import json

import matplotlib.image
import numpy as np


def read(folder):
    """The JSON and the text of a card, whose picture is a picture."""
    pixels = matplotlib.image.imread(folder / "card.png")
    assert pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
    return json.loads((folder / "card.json").read_text()), (folder / "card.txt").read_text(encoding="utf-8")


def test_the_embedded_corpus(command, tmp_path):
    process = command("scripts/data_card.py", "limit=500", "tokenizer=bytes", "hydra.run.dir=out")
    found, text = read(tmp_path / "out")
    assert found["documents"] + found["empty"] == found["limit"] == 500
    assert found["tokens"] == found["text_bytes"] > 100_000
    assert found["config"]["tokenizer"]["name"] == "bytes"
    for output in (text, process.stdout):
        assert "first 500 documents" in output
        assert f"{found['tokens']:,}" in output
        assert all(f"{side['tokens']:,}" in output for side in found["split"].values())
        assert all(sample["id"][:20] in output for sample in found["samples"])
    assert "written to" in process.stdout
    assert process.stderr == ""


def test_a_file_with_a_broken_line(command, tmp_path):
    lines = [json.dumps({"text": f"text {i} \ufffd" if i < 3 else f"text {i % 20}"}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:7], '{"text": "cut sho', *lines[7:]]))
    arguments = ["scripts/data_card.py", "data=files", "data.paths=a.jsonl", "tokenizer=bytes", "hydra.run.dir=out"]
    command(*arguments, "data.on_error=skip")
    found, text = read(tmp_path / "out")
    assert (found["documents"], found["skipped"]) == (40, {"line": 1})
    assert (found["damaged"]["documents"], found["copies"]["documents"]) == (3, 17)
    assert found["notes"] == []
    for figure in ("1 line, 2.44% of what was read", "3 documents (7.50%)", "17 documents (42.50%)", "every document"):
        assert figure in text

    process = command(*arguments, check=False)
    assert process.returncode == 1
    assert "line 8: not JSON" in process.stderr
    assert "data.on_error=skip" in process.stderr.strip().splitlines()[-1]


def test_a_wrong_limit(command):
    process = command("scripts/data_card.py", "limit=0", check=False)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1] == (
        "Error: limit=0: give a whole number of 1 or more, or null for all documents."
    )
