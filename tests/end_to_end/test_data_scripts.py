"""The data scripts as a user runs them: preparing, killing, going on, verifying; training a tokenizer."""

import json
import signal
import time

import pytest

from topklm.data import Embedded, Tokenizer, TokenStore


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of JSONL with the first 3,000 articles of the embedded corpus."""
    folder = tmp_path_factory.mktemp("texts")
    documents = [document for document, _ in zip(Embedded().documents(), range(3000), strict=False)]
    for name, part in (("a", documents[:2000]), ("b", documents[2000:])):
        lines = [json.dumps({"text": document.text}) + "\n" for document in part]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


CHOICE = ("data=files", "tokenizer=bytes", "data.shard_tokens=20k")


def stores(cache):
    return {
        path.parent.name: TokenStore(path.parent, growing=True) for path in cache.glob("files-bytes-*/*/manifest.json")
    }


def test_killed_at_any_moment_it_goes_on_and_comes_out_the_same(command, texts, tmp_path):
    choice = (*CHOICE, f"data.paths=[{texts}]")
    command("scripts/prepare_data.py", *choice, env={"TOPKLM_CACHE": str(tmp_path / "straight")})
    env = {"TOPKLM_CACHE": str(tmp_path / "killed")}
    for shards in (3, 20):
        process = command("scripts/prepare_data.py", *choice, "processes=2", env=env, wait=False)
        while process.poll() is None:
            found = stores(tmp_path / "killed")
            if "train" in found and len(found["train"].shards) >= shards:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate(timeout=60)
    finished = command("scripts/prepare_data.py", *choice, "processes=2", "verify=true", env=env)
    assert "every checksum holds" in finished.stdout
    straight, killed = (stores(tmp_path / name) for name in ("straight", "killed"))
    for name in ("train", "validation"):
        assert killed[name].complete
        assert (
            killed[name].read(0, killed[name].tokens).tolist() == straight[name].read(0, straight[name].tokens).tolist()
        )
        assert list(killed[name].documents()) == list(straight[name].documents())
        assert f"{straight[name].tokens:,}" in finished.stdout


def test_verify_finds_damage(command, texts, tmp_path):
    choice = (*CHOICE, f"data.paths=[{texts / 'b.jsonl'}]")
    env = {"TOPKLM_CACHE": str(tmp_path / "cache")}
    command("scripts/prepare_data.py", *choice, env=env)
    shard = next((tmp_path / "cache").glob("files-*/train/shard_00002.bin"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    again = command("scripts/prepare_data.py", *choice, env=env)
    assert "it is all there already" in again.stdout
    process = command("scripts/prepare_data.py", *choice, "verify=true", env=env, check=False)
    assert process.returncode == 1
    assert "shard_00002.bin has changed since it was written" in process.stderr


def test_skipped_lines_are_reported(command, texts, tmp_path):
    lines = (texts / "b.jsonl").read_text().splitlines()
    lines[500] = '{"text": "broken'
    (tmp_path / "broken.jsonl").write_text("\n".join(lines))
    choice = (*CHOICE, f"data.paths=[{tmp_path / 'broken.jsonl'}]")
    process = command("scripts/prepare_data.py", *choice, check=False)
    assert process.returncode == 1
    assert "broken.jsonl, line 501: not JSON" in process.stderr
    assert "Traceback" not in process.stderr
    process = command("scripts/prepare_data.py", *choice, "data.on_error=skip")
    assert "left out: 1 line" in process.stdout


def test_a_full_disk_is_told_with_what_to_do_and_nothing_is_lost(command, texts, tmp_path):
    choice = (*CHOICE[:2], "data.shard_tokens=200k", f"data.paths=[{texts}]")
    env = {"TOPKLM_CACHE": str(tmp_path / "cache")}
    process = command("scripts/prepare_data.py", *choice, env=env, check=False, largest_file=300_000)
    assert process.returncode == 1
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("Error: Cannot write ")
    assert line.endswith("or choose another place with data.cache_dir=..., and run the same command again.")
    command("scripts/prepare_data.py", *choice, "verify=true", env=env)


def test_a_tokenizer_is_trained_and_used(command, train, texts, tmp_path):
    paths = f"data.paths=[{texts}]"
    process = command("scripts/train_tokenizer.py", "data=files", paths, "tokenizer.vocab_size=600", "out=t/tok.json")
    tokenizer = Tokenizer.load(tmp_path / "t" / "tok.json")
    assert tokenizer.vocab_size == 600
    assert "bytes per token on" in process.stdout
    process = command("scripts/train_tokenizer.py", "data=files", paths, "out=t/tok.json", check=False)
    assert process.returncode == 1
    assert "out=t/tok.json exists: choose another name, or add overwrite=true" in process.stderr
    train("hydra.run.dir=run", "data=files", paths, "tokenizer=file", "tokenizer.path=t/tok.json")
    assert Tokenizer.load(tmp_path / "run" / "tokenizer.json").fingerprint == tokenizer.fingerprint
    process = command("scripts/train_tokenizer.py", "data=files", paths, "out=t/tok.json", "overwrite=no", check=False)
    assert process.stderr == "Error: overwrite=no: choose true or false.\n"
    assert Tokenizer.load(tmp_path / "t" / "tok.json").fingerprint == tokenizer.fingerprint


def test_what_is_prepared_for_another_start_is_what_training_takes(command, train, finished, tmp_path):
    _, run = finished
    command("scripts/prepare_data.py", "debug=smoke", f"init_from={run}", env={"TOPKLM_CACHE": str(tmp_path / "cache")})
    (store,) = (tmp_path / "cache").glob("embedded-*")
    train("hydra.run.dir=run", f"init_from={run}", "training.steps=2", env={"TOPKLM_CACHE": str(tmp_path / "cache")})
    assert list((tmp_path / "cache").glob("embedded-*")) == [store]
    process = command("scripts/prepare_data.py", f"run={run}", check=False)
    assert process.returncode == 1
    assert "continues a run, whose data stays as it is: leave it out." in process.stderr


def test_a_source_that_breaks_further_down_leaves_no_tokenizer(command, texts, tmp_path):
    lines = (texts / "b.jsonl").read_text().splitlines()
    (tmp_path / "broken.jsonl").write_text("\n".join([*lines, "broken"]))
    arguments = ("data=files", "data.paths=[broken.jsonl]", "tokenizer.train_bytes=1000", "tokenizer.vocab_size=300")
    process = command("scripts/train_tokenizer.py", *arguments, "out=tok.json", check=False)
    assert process.returncode == 1
    assert "not JSON" in process.stderr
    assert not (tmp_path / "tok.json").exists()
