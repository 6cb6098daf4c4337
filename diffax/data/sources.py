"""`load` a data set by name, and map its pixels to [-1, 1] and back.

A `Dataset` is a description and one function, `read(indices)`. Every set goes the same way: a TFDS
builder prepares ArrayRecord files once, a TFDS data source reads them in any order. A split that
takes at most 1 GiB is decoded into memory when it is loaded, so that `read` is an array lookup; a
larger one is decoded as it is read.

Preparing may be killed or raced: TFDS writes into a folder of a random name and renames it when it
is complete. A process that comes second fails to rename, and uses what the first one wrote. (A
killed one leaves a folder `incomplete.*` behind, which is safe to delete.)
"""

import contextlib
import difflib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax.data import raw
from diffax.data.raw import DataError

__all__ = ["Dataset", "from_unit", "load", "to_unit"]

_IN_MEMORY_BYTES = 2**30
_CHUNK = 1024


class Dataset(NamedTuple):
    """One split of a data set.

    Fields:
      name, split: what was loaded.
      image_shape: (H, W, C).
      num_classes: number of classes, or None when the set has no class labels.
      levels: number of grey levels L; pixels are integers in [0, L - 1].
      size: number of examples.
      read: indices, integers [n] in [0, size) -> {"image": uint8 [n, H, W, C], "label": int32 [n]},
        in the order of the indices; no "label" when num_classes is None. Thread-safe.
    """

    name: str
    split: str
    image_shape: tuple[int, int, int]
    num_classes: int | None
    levels: int
    size: int
    read: Callable[[np.ndarray], dict[str, np.ndarray]]


def load(name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set `name`: digits, mnist5k, fashion_mnist, emoji, or any of TFDS; prepared on first use.

    Args:
      name: a key of `raw.LEVELS`, or a name of TFDS with an optional config and version ("cifar10",
        "imagenet_resized/64x64", "fashion_mnist:3.0.1"). TFDS downloads its sets, and needs
        TensorFlow to prepare some of them (cifar10), though not to read them; a folder prepared
        elsewhere as array_record serves too. They need a feature "image" of one fixed shape [H, W]
        or [H, W, C], uint8 or floating in [0, 1] (rounded to 256 levels), and may have a class
        "label".
      split: "train", "test", ... or a slice such as "train[:80%]".
      data_dir: where prepared files live; by default the environment's DIFFAX_DATA_DIR, else
        ~/.cache/diffax.

    Raises:
      DataError (a ValueError): the name or split is unknown, the package that holds the data is
        absent, preparing or reading fails, the split has no examples, or the images are of a kind
        that is not supported.
    """
    for argument, value in (("name", name), ("split", split)):
        if not isinstance(value, str):
            raise DataError(f"{argument} = {_check.shown(value)}: must be a text such as 'digits' or 'train'")
    if data_dir is not None and not isinstance(data_dir, str | os.PathLike):
        raise DataError(f"data_dir = {_check.shown(data_dir)}: must be the path of a folder")
    root = Path(data_dir or os.environ.get("DIFFAX_DATA_DIR") or "~/.cache/diffax").expanduser()
    builder = _prepared(name, root)
    shape, dtype = _image_feature(name, builder.info.features)
    num_classes = _num_classes(builder.info.features)
    size = _size(name, split, builder)
    try:
        source = builder.as_data_source(split=split)
        read = _reader(name, source, shape, dtype, with_label=num_classes is not None)
        if size * int(np.prod(shape)) <= _IN_MEMORY_BYTES:
            chunks = [read(np.arange(i, min(i + _CHUNK, size))) for i in range(0, size, _CHUNK)]
            read = _lookup({key: np.concatenate([c[key] for c in chunks]) for key in chunks[0]})
    except DataError:
        raise
    except Exception as error:  # what TFDS and ArrayRecord raise on damaged files is not documented
        raise DataError(
            f"data set {name!r} cannot be read from {builder.data_path} ({_line(error)}); "
            "delete that folder to have it prepared again"
        ) from error
    return Dataset(name, split, shape, num_classes, raw.LEVELS.get(name, 256), size, _inside(size, read))


def to_unit(image: ArrayLike, levels: int) -> Array:
    """Pixels in [0, levels - 1] -> float32 in [-1, 1], of the same shape; 2 <= levels <= 256.

    Raises ValueError unless they are real numbers and, where they have values, finite, and in that range if integers.
    """
    pixels = _pixels("image", image, levels)
    if _check.concrete(pixels) and jnp.issubdtype(pixels.dtype, jnp.integer):
        low, high = int(np.min(np.asarray(pixels))), int(np.max(np.asarray(pixels)))
        if low < 0 or high > levels - 1:
            raise ValueError(f"image holds pixels from {low} to {high}: must lie in [0, levels - 1 = {levels - 1}]")
    return (2 * jnp.asarray(pixels).astype(jnp.float32) - (levels - 1)) / (levels - 1)


def from_unit(x: ArrayLike, levels: int) -> Array:
    """Values in [-1, 1] -> the nearest pixel, uint8 in [0, levels - 1]; others are clipped.

    Raises ValueError unless they are real numbers and, where they have values, finite: NaN would become a black pixel.
    """
    pixel = (jnp.asarray(_pixels("x", x, levels)).astype(jnp.float32) + 1) * ((levels - 1) / 2)
    return jnp.clip(jnp.round(pixel), 0, levels - 1).astype(jnp.uint8)


def _pixels(name: str, value: ArrayLike, levels: int) -> Any:
    _check.whole("levels", levels, 2, 256)
    if not isinstance(value, Array | np.ndarray):
        _check.real(name, value)
        value = np.asarray(value)
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    if not floating and not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f"{name} is of {value.dtype}: must be real numbers")
    if not value.size:
        raise ValueError(f"{name} has shape {value.shape}: must not be empty")
    if floating:
        _check.numbers(name, value)
    return value


def _line(error: Exception) -> str:
    """Type and first line of an error: TFDS adds pages of context."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".rstrip(": ")


def _builder(name: str, root: Path) -> Any:
    """The TFDS builder; it reads what is on disk when it is made."""
    import tensorflow_datasets as tfds

    from diffax.data.builders import BUILDERS

    not_found = tfds.core.registered.DatasetNotFoundError
    try:
        if name in BUILDERS:
            return BUILDERS[name](data_dir=root, file_format="array_record")
        # No "namespace:name": TFDS needs TensorFlow and a network only to look one up.
        if re.fullmatch(r"\w+(/[^:]+)?(:[\d.]+)?", name) is None:
            raise not_found(name)
        return tfds.builder(name, data_dir=root, file_format="array_record")
    except not_found as error:
        names = [*raw.LEVELS, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(re.split("[/:]", name.lower())[0], names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "no name is near it."
        own = ", ".join(raw.LEVELS)
        raise DataError(f"unknown data set {name!r}: {hint} Valid are {own} and the names of TFDS") from error
    except Exception as error:
        raise DataError(f"data set {name!r} cannot be opened in {root} ({_line(error)})") from error


def _prepared(name: str, root: Path) -> Any:
    """The builder of a data set whose files are on disk."""
    builder = _builder(name, root)
    path = builder.data_path
    if not path.exists():
        import tensorflow_datasets as tfds

        try:
            if name in raw.LEVELS:  # takes seconds: say nothing; a download may show its progress
                tfds.disable_progress_bar()
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare()
            else:
                builder.download_and_prepare()
        except DataError:
            raise
        except ModuleNotFoundError as error:
            # TFDS re-raises without `error.name`.
            found = re.search(r"No module named '([\w.]+)'", str(error))
            raise DataError(
                f"data set {name!r} needs one more package to be prepared, once: "
                f"pip install {found[1] if found else _line(error)}"
            ) from error
        except Exception as error:
            if not path.exists():  # else another process has prepared it meanwhile
                raise DataError(f"data set {name!r} cannot be prepared in {root} ({_line(error)})") from error
        builder = _builder(name, root)
    if not builder.info.splits:
        raise DataError(f"data set {name!r}: {path} is incomplete; delete that folder to have it prepared again")
    return builder


def _image_feature(name: str, features: Any) -> tuple[tuple[int, int, int], np.dtype]:
    """Shape (H, W, C) and number type of the feature "image"."""
    keys = list(features.keys()) if hasattr(features, "keys") else []
    if "image" not in keys:
        have = ", ".join(map(repr, keys)) or "none"
        raise DataError(f"data set {name!r} has no feature 'image', only {have}")
    shape, dtype = features["image"].shape, features["image"].np_dtype
    if not isinstance(shape, tuple) or len(shape) not in (2, 3):
        raise DataError(f"data set {name!r} has 'image' of shape {shape}, not one image [H, W] or [H, W, C]")
    if None in shape:
        raise DataError(f"data set {name!r} has images of variable shape {shape}; only a fixed one is supported")
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise DataError(f"data set {name!r} has images of {np.dtype(dtype)}, not uint8 or floating in [0, 1]")
    height, width, channels = (*shape, 1)[:3]
    return (height, width, channels), np.dtype(dtype)


def _num_classes(features: Any) -> int | None:
    import tensorflow_datasets as tfds

    label = dict(features).get("label")
    return label.num_classes if isinstance(label, tfds.features.ClassLabel) else None


def _size(name: str, split: str, builder: Any) -> int:
    splits = builder.info.splits
    try:
        size = int(splits[split].num_examples)
    except Exception as error:  # ValueError or KeyError, by kind of split
        valid = ", ".join(map(repr, sorted(splits)))
        raise DataError(
            f"split = {split!r}: data set {name!r} has the splits {valid}, and slices of them such as 'train[:80%]'"
        ) from error
    if size == 0:
        raise DataError(f"split = {split!r}: it holds no example of data set {name!r}")
    return size


def _inside(size: int, read: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Callable:
    """`read`, for indices that are there: -1 would be the last example."""

    def checked(indices: np.ndarray) -> dict[str, np.ndarray]:
        at = np.asarray(indices)
        if at.ndim != 1 or not np.issubdtype(at.dtype, np.integer):
            raise ValueError(f"indices = {_check.shown(indices)}: must be [n] integers")
        if at.size and not (at.min() >= 0 and at.max() < size):
            raise ValueError(f"indices = {_check.shown(indices)}: must lie in [0, {size - 1}]")
        return read(at)

    return checked


def _lookup(arrays: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda indices: {key: array[indices] for key, array in arrays.items()}


def _reader(
    name: str, source: Any, shape: tuple[int, int, int], dtype: np.dtype, with_label: bool
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """`read` of a data set that stays on disk."""

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        examples = source.__getitems__([int(i) for i in indices])
        image = np.array([example["image"] for example in examples], dtype).reshape(-1, *shape)
        if dtype != np.uint8:
            image = _quantise(name, image, indices)
        if not with_label:
            return {"image": image}
        label = np.array([example["label"] for example in examples], np.int32)
        return {"image": image, "label": label}

    return read


def _quantise(name: str, image: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8; DataError on anything else (a comparison with nan is false)."""
    valid = ((image >= 0) & (image <= 1)).all(axis=(1, 2, 3))
    if not valid.all():
        i = int(np.argmin(valid))
        what = "outside [0, 1]" if np.isfinite(image[i]).all() else "that is not finite"
        raise DataError(f"data set {name!r}, example {int(indices[i])}: the image holds a value {what}")
    return np.rint(image.astype(np.float32) * 255).astype(np.uint8)
