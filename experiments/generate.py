"""Many images from a compiled sampler: in batches, over all devices, with a progress bar."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from diffax.training.sharding import batch_shards, put_replicated, put_whole, to_host

__all__ = ["class_labels", "generate"]


def class_labels(n: int, num_classes: int | None, chosen: list[int] | None = None) -> np.ndarray:
    """n labels that go round the chosen classes (all by default); zeros for data without classes. [n] int32."""
    if num_classes is None:
        if chosen:
            raise ValueError(f"--label = {chosen}: the model has no classes to ask for")
        return np.zeros(n, np.int32)
    classes = chosen if chosen else list(range(num_classes))
    if bad := [c for c in classes if not 0 <= c < num_classes]:
        raise ValueError(f"--label = {bad}: classes go from 0 to {num_classes - 1}")
    return np.resize(np.asarray(classes, np.int32), n)


def generate(
    sampler: Callable[[Any, Array, Array, Array], tuple[Array, Array]],
    params: Any,
    key: Array,
    labels: np.ndarray,
    mesh: Mesh,
    *,
    batch_size: int = 128,
    progress: bool = True,
) -> np.ndarray:
    """One image a label, uint8 [n, height, width, channels]. Image i depends on the key and on i alone, not on the
    batch it is made in. (Several processes make them together, and each gets all.) The sampler is one of
    `experiments.recipe`. Raises FloatingPointError at the first batch with a sample that is not finite.
    """
    n = len(labels)
    # One shape for all batches, so one compilation: the last one is padded.
    shards = batch_shards(mesh)
    batch_size = -(-min(batch_size, n) // shards) * shards
    key = jax.random.wrap_key_data(put_replicated(np.asarray(jax.random.key_data(key)), mesh))
    out = []
    with tqdm(total=n, unit=" images", desc="sampling", disable=not progress, mininterval=0.5) as bar:
        for start in range(0, n, batch_size):
            index = np.arange(start, start + batch_size, dtype=np.int32)
            label = labels[np.minimum(index, n - 1)]
            images, finite = (to_host(a)[: n - start] for a in sampler(params, key, *put_whole((index, label), mesh)))
            if not finite.all():
                raise FloatingPointError(
                    f"{(~finite).sum()} of {len(finite)} samples hold NaN or infinity, such as sample "
                    f"{start + int(np.argmin(finite))}: the network has diverged, or the guidance or the solver is too "
                    "much for it"
                )
            out.append(images)
            bar.update(len(out[-1]))
    return np.concatenate(out)
