"""Does a model draw new images, or recite the ones it was trained on?"""

import numpy as np

from diffax import _check

__all__ = ["nearest_distance"]


def nearest_distance(images: np.ndarray, train_images: np.ndarray) -> np.ndarray:
    """Root mean square difference per pixel from each image [n, ...] to the nearest training image. [n] float.

    Samples that are as far from the training set as real held-out images are neither copied nor strange. Raises
    ValueError for none of either, images of another shape than the training images', or values that are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    query, train = (np.asarray(x, np.float32) for x in (images, train_images))
    if query.shape[1:] != train.shape[1:] or not query.size or not train.size:
        raise ValueError(
            f"images of shape {list(query.shape)} against training images of {list(train.shape)}: must be [n, ...] and "
            "[m, ...] of one shape"
        )
    query, train = (x.reshape(len(x), -1) for x in (query, train))
    _check.numbers("images", query)
    _check.numbers("train_images", train)
    distance, _ = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(query)
    return distance[:, 0] / np.sqrt(train.shape[1])
