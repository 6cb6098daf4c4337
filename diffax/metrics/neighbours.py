"""Does a model draw new images, or recite the ones it was trained on?"""

import numpy as np

__all__ = ["nearest_distance"]


def nearest_distance(images: np.ndarray, train_images: np.ndarray) -> np.ndarray:
    """Root mean square difference per pixel from each image [n, ...] to the nearest training image. [n] float.

    Samples that are as far from the training set as real held-out images are neither copied nor strange.
    """
    from sklearn.neighbors import NearestNeighbors

    train = np.asarray(train_images, np.float32).reshape(len(train_images), -1)
    query = np.asarray(images, np.float32).reshape(len(images), -1)
    distance, _ = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(query)
    return distance[:, 0] / np.sqrt(train.shape[1])
