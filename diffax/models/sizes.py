"""Checks that all architectures make of their sizes, each a ValueError that names the field."""

from collections.abc import Sequence

import numpy as np

from diffax import _check

__all__ = ["levels", "patches", "rate", "transformer", "whole"]


def whole(**values: int | None) -> None:
    """Positive integers; None for what is not given."""
    for name, value in values.items():
        if value is not None:
            _check.whole(name, value)


def levels(
    shape: Sequence[int], multipliers: Sequence[int], attention: Sequence[int], ranks: Sequence[int]
) -> tuple[bool, ...]:
    """A network that halves its input from level to level: shape is of one sample, with its channels.

    Returns: for each level whether its height is among those with attention.
    """
    if not isinstance(multipliers, Sequence) or not multipliers or not all(_counts(m) for m in multipliers):
        raise ValueError(f"multipliers = {multipliers}: must be integers >= 1, one for each level")
    if len(shape) not in ranks or not all(_counts(size) for size in shape):
        raise ValueError(f"shape = {tuple(shape)}: must be of {' or '.join(map(str, ranks))} positive integers")
    sides, factor = tuple(shape)[-3:-1], 2 ** (len(multipliers) - 1)
    if any(side % factor for side in sides):
        named = ("height", "width") if len(sides) == 2 else ("length",)
        what = " and ".join(f"{name} {side}" for name, side in zip(named, sides, strict=True))
        raise ValueError(
            f"shape = {tuple(shape)}: {what} must be multiples of {factor}, because multipliers = "
            f"{tuple(multipliers)} has {len(multipliers)} levels, each half the size of the one before"
        )
    heights = [sides[0] >> level for level in range(len(multipliers))]
    if unknown := set(attention) - set(heights):
        raise ValueError(f"attention = {tuple(attention)}: {sorted(unknown)} is no level's height; they are {heights}")
    return tuple(height in attention for height in heights)


def patches(shape: Sequence[int], patch: int) -> None:
    """A network that cuts images into squares."""
    _check.whole("patch", patch)
    if len(shape) != 3 or not all(_counts(size) for size in shape) or shape[0] % patch or shape[1] % patch:
        raise ValueError(f"shape = {tuple(shape)}: must be (height, width, channels), the sides multiples of {patch}")


def transformer(width: int, depth: int, heads: int) -> None:
    """Heads divide its width, and so do the four parts of a position."""
    whole(width=width, depth=depth, heads=heads)
    if width % heads or width % 4:
        raise ValueError(f"width = {width}: must be divisible by 4 and by heads = {heads}")


def rate(name: str, value: float) -> None:
    """A share of units to drop."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} = {value}: must lie in [0, 1)")


def _counts(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)
