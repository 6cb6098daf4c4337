"""Do samples of a requested class look like that class, to a classifier that knows only real images?

The judge is scikit-learn's support vector machine with an RBF kernel on pixels: repeatable, and a second to train on
small images. Its own accuracy on held-out real images bounds what samples can be expected to reach.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffax import _check

if TYPE_CHECKING:  # a second to import, and the other metrics do without
    from sklearn.pipeline import Pipeline

__all__ = ["Judge", "accuracy", "judge"]


class Judge(NamedTuple):
    """A classifier of images, and its accuracy on held-out real ones (0 to 1)."""

    model: "Pipeline"
    held_out_accuracy: float


def judge(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    max_train: int = 10_000,
) -> Judge:
    """Trains on real images [n, ...] with labels [n] and tests on others.

    max_train: of more images so many are taken, spread evenly over them.

    Raises ValueError unless max_train is a whole number >= 1, and scikit-learn's for what it cannot be trained on, such
    as images of one class alone.
    """
    _check.whole("max_train", max_train)
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    # One scale for all pixels: pixels that are nearly always empty must not be blown up.
    model = make_pipeline(StandardScaler(with_std=False), SVC(C=10, gamma="scale"))
    n = len(train_images)
    count = min(n, max_train)
    chosen = np.arange(count) * n // count
    model.fit(_flat(train_images[chosen]), train_labels[chosen])
    return Judge(model, float(model.score(_flat(test_images), test_labels)))


def accuracy(judge: Judge, images: np.ndarray, requested: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of images [n, ...] that the judge takes for the class requested [n], and the confusion matrix
    [classes, classes] of counts, rows being what was requested. Raises ValueError for a class that the judge was not
    shown.
    """
    if (unknown := np.setdiff1d(requested, judge.model.classes_)).size:
        raise ValueError(f"requested: has classes {unknown.tolist()}, which the judge was not trained on")
    guess = judge.model.predict(_flat(images))
    classes = judge.model.classes_
    confusion = np.array([[np.sum((requested == a) & (guess == b)) for b in classes] for a in classes])
    return float(np.mean(guess == requested)), confusion


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(images), -1)
