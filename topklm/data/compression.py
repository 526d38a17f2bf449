"""How well xz compresses the validation text: a yardstick in bits per byte that needs no neural network.

``plain`` compresses the validation text alone. ``primed`` lets xz use the training text as its dictionary: the size of
both together minus the size of the training text. A language model that saw the training text should beat the second
figure.
"""

from __future__ import annotations

import lzma
from concurrent.futures import ThreadPoolExecutor

MAX_BYTES = (
    1 << 26
)  # xz -9e has a 64 MiB dictionary: with more text than that the primed figure would mean something else


def xz_bits_per_byte(train: list[str], validation: list[str]) -> dict[str, float] | None:
    """``{"plain": ..., "primed": ...}``, bits per byte of the validation text under ``xz -9e``; None above 64 MiB of
    text.

    Documents are joined by a newline.
    """
    train_bytes, validation_bytes = ("\n".join(texts).encode("utf-8", "surrogatepass") for texts in (train, validation))
    if len(train_bytes) + len(validation_bytes) > MAX_BYTES or not validation_bytes:
        return None

    def size(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    with ThreadPoolExecutor(2) as pool:  # lzma lets go of the interpreter lock
        alone, known, both = pool.map(size, (validation_bytes, train_bytes, train_bytes + b"\n" + validation_bytes))
    return {"plain": 8 * alone / len(validation_bytes), "primed": 8 * (both - known) / len(validation_bytes)}
