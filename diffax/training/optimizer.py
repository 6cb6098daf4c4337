"""The optimizer: Adam with linear warm-up and clipping of the gradient's norm, from optax."""

import optax

from diffax import _check

__all__ = ["adam_with_warmup"]


def adam_with_warmup(
    learning_rate: float, *, warmup_steps: int = 0, clip_norm: float | None = 1.0, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam whose learning rate rises linearly over `warmup_steps` and then stays.

    A constant rate (averaging of the parameters does what a decay would) leaves a run free to go on for longer than was
    planned. Raises ValueError for a rate, a norm or a number of steps that is out of range.
    """
    _check.positive("learning_rate", learning_rate)
    if not 0 <= warmup_steps < 2**31:
        raise ValueError(f"warmup_steps = {warmup_steps}: must lie in [0, 2^31)")
    if clip_norm is not None:
        _check.positive("clip_norm", clip_norm)
    rate = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, max(warmup_steps - 1, 1))
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adam(rate, b2=b2))
