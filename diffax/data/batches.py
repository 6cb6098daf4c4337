"""Shuffled, endless, resumable batches as a Grain iterator, the same for any number of processes.

Step k of a run reads positions k B ... (k + 1) B - 1 of one endless list: epoch 0 in its order,
epoch 1 in another, and so on. A batch is therefore a pure function of (seed, k): the state of the
iterator is k, resuming is exact, and process p of P reads rows p B / P ... (p + 1) B / P - 1 of the
same global batch that a single process would read.

The order of an epoch sorts the raw 64-bit output of Philox with key (seed, epoch). NumPy keeps the
stream of a bit generator fixed for ever, unlike that of `permutation`, so a checkpoint resumes
under another version of NumPy too. (`MapDataset.shuffle` followed by `batch` gives the same
guarantees, but works element by element in Python: some forty times slower on small images.)
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from diffax.data.sources import Dataset

if TYPE_CHECKING:
    import grain

__all__ = ["batches"]


def batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """An iterator over batches {"image": uint8 [b, H, W, C], "label": int32 [b]}.

    Here b = batch_size / process_count. Each epoch holds every example exactly once. A batch may
    span two epochs, so batch_size may exceed the data set; what is left at the end of the last
    epoch is dropped (to see all of a test split use `dataset.read`). The iterator has `get_state`
    and `set_state`, and is saved by `grain.checkpoint.CheckpointSave`.

    Args:
      batch_size: examples in a global batch, over all processes.
      seed: of the order, in [0, 2^32); not used when shuffle is False.
      shuffle: a new order for every epoch; False reads 0, 1, 2, ... in every epoch.
      process_index, process_count: this process, and how many there are.
      epochs: passes over the data set; None is endless.

    Raises:
      ValueError: an argument is out of its range, batch_size is not a multiple of process_count,
        or the epochs hold less than one batch.
    """
    import grain

    batch_size = _integer("batch_size", batch_size, 1)
    seed = _integer("seed", seed, 0, 2**32 - 1)
    process_count = _integer("process_count", process_count, 1)
    process_index = _integer("process_index", process_index, 0, process_count - 1)
    if batch_size % process_count:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of process_count = {process_count}")
    steps = sys.maxsize // batch_size
    if epochs is not None:
        examples = dataset.size * _integer("epochs", epochs, 1)
        steps = examples // batch_size
        if steps == 0:
            raise ValueError(
                f"batch_size = {batch_size}: must be at most {examples}, the {dataset.size} "
                f"examples of {dataset.name!r} times epochs = {epochs}"
            )
    rows = _rows(dataset.size, batch_size, seed, shuffle, process_index, process_count)
    source = grain.MapDataset.range(steps).map(lambda step: dataset.read(rows(step)))
    # Sixteen batches ahead, not Grain's 500, bound the memory; more threads would wait for the GIL.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    return iter(source.to_iter_dataset(options))


def _rows(
    size: int, batch_size: int, seed: int, shuffle: bool, process_index: int, process_count: int
) -> Callable[[int], np.ndarray]:
    """step -> indices [batch_size / process_count] of the examples that this process reads."""
    share = batch_size // process_count

    # Reading ahead touches the end of one epoch and the start of the next at the same time.
    @functools.lru_cache(maxsize=3)
    def order(epoch: int) -> np.ndarray:
        if not shuffle:
            return np.arange(size)
        bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
        return np.argsort(bits, kind="stable")

    def rows(step: int) -> np.ndarray:
        first = int(step) * batch_size + process_index * share
        epochs = range(first // size, (first + share - 1) // size + 1)
        orders = [order(epoch) for epoch in epochs]
        ahead = np.concatenate(orders) if len(orders) > 1 else orders[0]
        return ahead[first % size : first % size + share]

    return rows


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int in [low, high], or ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        allowed = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} = {value!r}: must be an integer {allowed}")
    return number
