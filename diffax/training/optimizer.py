"""The optimizer: Adam with linear warm-up and clipping of the gradient's norm, from optax."""

import optax

__all__ = ["adam"]


def adam(
    learning_rate: float, *, warmup_steps: int = 0, clip_norm: float | None = 1.0, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam whose learning rate rises linearly over `warmup_steps` and then stays.

    A constant rate (averaging of the parameters does what a decay would) leaves a run free to go on for longer than was
    planned. Raises ValueError for a rate, a norm or a number of steps that is out of range.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate = {learning_rate}: must be positive")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps = {warmup_steps}: must be >= 0")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm = {clip_norm}: must be positive, or None for no clipping")
    rate = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, max(warmup_steps - 1, 1))
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adam(rate, b2=b2))
