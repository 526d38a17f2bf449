"""`python train.py plan=true` prints a page and leaves nothing behind."""

import pytest


def test_a_plan_writes_nothing(command, tmp_path, cache):
    before = sorted(cache.rglob("*"))
    process = command("train.py", "plan=true", "debug=smoke", "plan.watts=50", "plan.euro_per_gpu_hour=1")
    assert "8 windows" in process.stdout
    assert "steps on random tokens take" in process.stdout
    assert list(tmp_path.iterdir()) == []
    assert sorted(cache.rglob("*")) == before


def test_a_sweep_is_a_row_for_each_job(command, tmp_path):
    process = command("train.py", "plan=true", "-m", "debug=smoke", "plan.device=H100", "topk.k=4,8")
    rows = [line.split() for line in process.stdout.splitlines()]
    assert rows[0][-1] == "job"
    assert [row[-1] for row in rows[1:]] == ["topk.k=4", "topk.k=8"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan=True", "plan.mfu=2"], "plan.mfu=2.0: give a share of the peak above 0 and at most 1."),
        (["plan=maybe"], "plan=maybe: choose from true, false."),
        (["plan.device=H100"], "plan.device=H100 is for plan=true: add that."),
        (["plan=false", "plan.device=H100"], "plan.device=H100 is for plan=true: add that."),
        (["plan=true", "topk.k=0"], "topk.k=0: TopK keeps at least 1 entry"),
        (["plan=true", "init_from=nowhere"], "init_from=nowhere does not exist"),
    ],
)
def test_mistakes_end_with_a_sentence(command, tmp_path, overrides, message):
    process = command("train.py", *overrides, check=False)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1].startswith(f"Error: {message}")
    assert list(tmp_path.iterdir()) == []
