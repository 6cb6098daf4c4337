"""Two inverse problems with real microscope images, which ship inside scikit-image (`pip install '.[microscopy]'`).

| task | truth | measured |
|---|---|---|
| superresolution | a stain of colonic glands: `immunohistochemistry` | blurred, half the pixels, shot and read noise |
| phase | a cell in saline: `cell` | intensities on both sides of the focus, shot noise |

The images are real, the measurements are simulated (`diffax.optics`). `immunohistochemistry` (512 x 512, CMMI, no known
copyright restrictions) is taken apart into its stains (Ruifrok & Johnston 2001), of which DAB stands for a dye that
shines. `cell` (660 x 550, CC0; Mueller et al. 2018) is a quantitative phase image; its grey levels have no unit, and
the whole range is taken for 4 radians, about what 14 micrometres of a cell make of an index 0.03 above the saline's.

Train and test are two regions of the image, left and right, with a gap between them. Each region is measured by itself,
mirrored at its edges, so that no light of one falls into the other. Patches are windows whose truth has some contrast,
`least` times the standard deviation of the whole image: an empty background would flatter everything. Training patches
are drawn at random among them, in one of eight orientations; test patches are an even choice of windows on a lattice
(which overlap), and each patch has noise of its own. Truth and measurement are scaled to [-1, 1] or thereabouts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from diffax import _check, optics

__all__ = ["TASKS", "Pairs", "Task", "pairs", "phase", "superresolution"]

_MARGIN = 64
"""Pixels that a region is mirrored by: more than light goes sideways."""


class Task(NamedTuple):
    """An image and how it is measured.

    Fields:
      truth: [height, width] in [0, 1].
      split: (where the training columns end, where those of the test begin).
      intensity: truth of a region [height, width, 1] -> what a noiseless camera sees, [height / bins, width / bins,
        channels].
      bins: pixels of the truth to one of the camera, along each side.
      peak, read_noise: see `optics.photons`.
      scaled: what was recorded -> about [-1, 1].
      least: contrast of a patch, over the standard deviation of the image.
      stride: of the lattice of test windows, in pixels.
    """

    truth: np.ndarray
    split: tuple[int, int]
    intensity: Callable[[np.ndarray], np.ndarray]
    bins: int
    peak: float
    read_noise: float
    scaled: Callable[[np.ndarray], np.ndarray]
    least: float
    stride: int


class Pairs(NamedTuple):
    """truth [n, size, size, 1] in [-1, 1], and measured [n, size, size, channels], as large as the truth."""

    truth: np.ndarray
    measured: np.ndarray


def superresolution() -> Task:
    """Twice the resolution of the camera, and what the lens has blurred."""
    from skimage import color, data

    stain = color.rgb2hed(data.immunohistochemistry())[..., 2]
    truth = np.clip(stain / np.percentile(stain, 99.8), 0, 1).astype(np.float32)

    def intensity(region: np.ndarray) -> np.ndarray:
        wide = _mirrored(region)
        blurred = optics.blur(wide, optics.airy(wide.shape[:2], 3.0))
        return np.asarray(optics.binned(_inside(np.asarray(blurred)), 2))

    return Task(truth, (312, 328), intensity, 2, 200.0, 2.0, lambda y: 2 * y - 1, 0.5, 16)


def phase() -> Task:
    """The phase of a cell from two intensities out of focus, without interference."""
    from skimage import data

    truth = data.cell().astype(np.float32) / 255

    def intensity(region: np.ndarray) -> np.ndarray:
        wide = _mirrored(4.0 * region)
        # micrometres: red light in water, and the pixels of the image
        return _inside(np.asarray(optics.defocused(wide, (2.0, -2.0), wavelength=0.633 / 1.333, pixel=0.107)))

    return Task(truth, (420, 436), intensity, 1, 400.0, 0.0, lambda y: y - 1, 1.0, 8)


TASKS: dict[str, Callable[[], Task]] = {"superresolution": superresolution, "phase": phase}
"""By name."""


def pairs(task: Task, *, size: int = 32, train: int = 4096, test: int = 48, seed: int = 0) -> tuple[Pairs, Pairs]:
    """`train` and `test` patches of size x size pixels, the same whenever they are asked for.

    Raises ValueError unless size is even, both regions have windows of contrast of that size, and that of the test has
    `test` of them.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("size", size, 2)):
        _check.whole(name, value, least)
    if size % 2:
        raise ValueError(f"size = {size}: must be even")
    left, right = task.truth[:, : task.split[0]], task.truth[:, task.split[1] :]
    contrast = task.least * float(task.truth.std())
    found, lattice = _windows(left, size, 2, contrast), _windows(right, size, task.stride, contrast)
    for where, windows in (("training", found), ("test", lattice)):
        if not len(windows):
            raise ValueError(f"size = {size}: the {where} region has no window of that size and of contrast")
    if len(lattice) < test:
        raise ValueError(f"test = {test}: the test region has {len(lattice)} windows of contrast")
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    corners, turns = found[rng.integers(len(found), size=train)], rng.integers(8, size=train)
    chosen = lattice[np.linspace(0, len(lattice) - 1, test).round().astype(int)]
    return (
        _measured(task, left, corners, size, turns, jax.random.fold_in(key, 0)),
        _measured(task, right, chosen, size, np.zeros(test, int), jax.random.fold_in(key, 1)),
    )


def _windows(region: np.ndarray, size: int, stride: int, contrast: float) -> np.ndarray:
    """Corners [n, 2] of the windows on a lattice whose standard deviation is at least `contrast`."""
    sums = [np.pad(np.cumsum(np.cumsum(np.float64(region) ** p, 0), 1), ((1, 0), (1, 0))) for p in (1, 2)]
    mean, square = (
        (s[size:, size:] - s[:-size, size:] - s[size:, :-size] + s[:-size, :-size])[::stride, ::stride] / size**2
        for s in sums
    )
    return stride * np.argwhere(square - mean**2 >= contrast**2)


def _measured(
    task: Task, region: np.ndarray, corners: np.ndarray, size: int, turns: np.ndarray, key: jax.Array
) -> Pairs:
    """Patches at these corners, as the camera sees them, enlarged to the truth's pixels, each turned."""
    intensity = task.intensity(region[..., None])

    def cut(image: np.ndarray, bins: int) -> np.ndarray:
        side = size // bins
        return np.stack([image[row : row + side, column : column + side] for row, column in corners // bins])

    seen = optics.photons(key, cut(intensity, task.bins), peak=task.peak, read_noise=task.read_noise)
    measured = task.scaled(np.asarray(seen)).repeat(task.bins, 1).repeat(task.bins, 2)
    return Pairs(_turned(2 * cut(region[..., None], 1) - 1, turns), _turned(measured, turns))


def _turned(images: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Each by turns % 4 quarters, and mirrored from 4 on."""
    quarters = np.stack([np.rot90(image, turn % 4) for image, turn in zip(images, turns, strict=True)])
    return np.where((turns >= 4)[:, None, None, None], quarters[:, ::-1], quarters).astype(np.float32)


def _mirrored(region: np.ndarray) -> np.ndarray:
    return np.pad(region, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), mode="symmetric")


def _inside(wide: np.ndarray) -> np.ndarray:
    return wide[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
