"""The compressor's yardstick agrees with the xz program."""

import shutil
import subprocess

import pytest

from topklm.data import compression
from topklm.data.compression import xz_bits_per_byte


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz program is not installed")
def test_agrees_with_the_xz_program(corpus, tmp_path):
    train, validation = [d.text for d in corpus[:200]], [d.text for d in corpus[200:]]

    def size(texts):
        (tmp_path / "text").write_text("\n".join(texts), newline="")
        return len(subprocess.run(["xz", "-9e", "-c", tmp_path / "text"], capture_output=True, check=True).stdout)

    length = len("\n".join(validation).encode())
    result = xz_bits_per_byte(train, validation)
    assert result["plain"] == pytest.approx(8 * size(validation) / length, rel=0.01)
    assert result["primed"] == pytest.approx(8 * (size(train + validation) - size(train)) / length, rel=0.02)


def test_not_measured_where_the_dictionary_would_not_hold_the_text(monkeypatch):
    monkeypatch.setattr(compression, "MAX_BYTES", 10)
    assert xz_bits_per_byte(["a" * 10], ["b"]) is None
    assert xz_bits_per_byte(["a"], []) is None
