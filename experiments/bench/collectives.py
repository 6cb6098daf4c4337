"""What a compiled program sends between devices, read from its text."""

import re

import numpy as np

__all__ = ["Message", "messages"]

_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s8": 1, "u8": 1}


def messages(text: str) -> dict[str, list["Message"]]:
    """{kind: what is sent} of a compiled program: an array as each device has it after the message."""
    found: dict[str, list[Message]] = {}
    array = r"[a-z0-9]+\[[0-9,]*\](?:\{[^}]*\})?"
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for arrays, kind in re.findall(rf"= \(?((?:{array}(?:, )?(?:/\*[^*]*\*/)?)+)\)? ({kinds})(?:-start)?\(", text):
        for dtype, sizes in re.findall(r"([a-z0-9]+)\[([0-9,]*)\]", arrays):
            found.setdefault(kind, []).append(Message(dtype, tuple(int(n) for n in sizes.split(",") if n)))
    return found


class Message(int):
    """Its bytes, and the shape of the array."""

    shape: tuple[int, ...]

    def __new__(cls, dtype: str, shape: tuple[int, ...]) -> "Message":
        self = super().__new__(cls, int(np.prod(shape, dtype=np.int64)) * _BYTES[dtype])
        self.shape = shape
        return self
