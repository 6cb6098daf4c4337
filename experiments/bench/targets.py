"""Distributions whose denoiser is known exactly, so that the error of a solver can be measured and nothing else.

Each is a mixture of Gaussians. Component k = N(m_k, A_k diag(v_k) A_k^T) convolved with noise of variance s^2 has the
posterior mean m_k + A_k diag(v_k / (v_k + s^2)) A_k^T (x - m_k), and the denoiser is the average of these, weighted by
the probability of k given x. One function says so for NumPy, JAX and PyTorch alike.

    target = load("digits")
    x, end = target.start(), target.end()     # 80 n, and where the probability-flow ODE leads from there, in float64
    denoise = target.denoiser()               # for dx.sample

The ODE runs from sigma = 80 to 0.002; the end is the denoised state there. It is found by RK4 in log sigma, 4096 steps,
in float64, and kept in ~/.cache/diffax/bench. Nothing but NumPy is needed here, so that other libraries' environments
can read problems from files (`save`, `read`).
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "NAMES",
    "SIGMA_MAX",
    "SIGMA_MIN",
    "Mixture",
    "Target",
    "integrate",
    "load",
    "posterior_mean",
    "read",
    "save",
]

SIGMA_MAX, SIGMA_MIN = 80.0, 0.002


class Mixture(NamedTuple):
    """Means [K, d], log weights [K], and either one variance for all (axes None) or axes [K, d, d], variances [K, d].

    axes[k, :, i] is the direction of variance[k, i].
    """

    means: Any
    log_weights: Any
    variances: Any
    axes: Any = None


def posterior_mean(xp: ModuleType, mixture: Mixture, x: Any, sigma: Any) -> Any:
    """E[x_0 | x_0 + sigma n = x] for x [batch, d] and sigma scalar or [batch], by the array library xp."""
    noise = xp.broadcast_to(xp.asarray(sigma, dtype=x.dtype) ** 2, x.shape[:1])[:, None]
    part = _common if mixture.axes is None else _general
    return part(xp, mixture, x, noise)


def _common(xp: ModuleType, mixture: Mixture, x: Any, noise: Any) -> Any:
    """All components have one variance in all directions."""
    means, total = mixture.means, mixture.variances + noise
    if x.dtype == xp.float64:  # up to a term that all components share
        closeness = x @ means.T - 0.5 * (means * means).sum(-1)
    else:  # the product would cancel
        closeness = -0.5 * ((x[:, None] - means) ** 2).sum(-1)
    r = _softmax(xp, closeness / total + mixture.log_weights)
    keep = mixture.variances / total
    return keep * x + (1 - keep) * (r @ means)


def _general(xp: ModuleType, mixture: Mixture, x: Any, noise: Any) -> Any:
    """Each component has its own covariance."""
    total = mixture.variances + noise[:, None]  # [batch, K, d]
    y = xp.einsum("kji,bkj->bki", mixture.axes, x[:, None] - mixture.means)
    log_r = mixture.log_weights - 0.5 * (y * y / total + xp.log(total)).sum(-1)
    means = mixture.means + xp.einsum("kij,bkj->bki", mixture.axes, mixture.variances / total * y)
    return (_softmax(xp, log_r)[..., None] * means).sum(1)


def _softmax(xp: ModuleType, a: Any) -> Any:
    weights = xp.exp(a - xp.amax(a, -1)[:, None])
    return weights / weights.sum(-1)[:, None]


class Target(NamedTuple):
    """A distribution to be sampled.

    Fields:
      name, title: short, and in words.
      shape: of one sample.
      seeds: how many starts errors are averaged over.
      pilots: how many others at most to learn from.
      mixture: the distribution in float64; None for a network.
      network, made_of: denoise(x, sigma) in JAX where there is no mixture, which computes in the dtype of x; and a hash
        of its parameters.
      steps: RK4 steps of the reference.
    """

    name: str
    title: str
    shape: tuple[int, ...]
    seeds: int
    mixture: Mixture | None = None
    network: Callable | None = None
    made_of: str = ""
    steps: int = 4096
    pilots: int = 64

    def start(self) -> np.ndarray:
        """[seeds, ...] float32 at sigma = 80: always the same, and the first of any more."""
        return _noise(20, self.seeds, self.shape)

    def pilot(self, seeds: int = 64) -> np.ndarray:
        """Other such starts, for what learns from the model."""
        return _noise(21, seeds, self.shape)

    def end(self, progress: Callable = iter) -> np.ndarray:
        """[seeds, ...] float64: the exact solutions from `start`, from the cache if they are there."""
        path = _cache() / f"{self.name}-{self.fingerprint()}.npz"
        if path.exists():
            return np.load(path)["end"]
        end = integrate(self.numpy_denoiser(), self.start(), self.steps, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        np.savez(partial, end=end)
        partial.replace(path)
        return end

    def fingerprint(self) -> str:
        """A hash of everything that the reference depends on."""
        digest = hashlib.sha256(f"{self.steps} {SIGMA_MAX} {SIGMA_MIN}{self.made_of}".encode())
        for array in (*(self.mixture or ()), self.start()):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def numpy_denoiser(self) -> Callable[[Any, Any], np.ndarray]:
        """The denoiser in float64."""
        if self.mixture is None:
            return _in_float64(self._network())
        mixture = self.mixture
        return lambda x, sigma: posterior_mean(np, mixture, np.asarray(x, np.float64), sigma)

    def denoiser(self) -> Callable:
        """The denoiser for `dx.sample`, float32 in and out. With jax_enable_x64 it is exact to float64 within."""
        import jax
        import jax.numpy as jnp

        if self.mixture is None:
            return self._network()
        dtype = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
        mixture = jax.tree.map(lambda a: jnp.asarray(a, dtype), self.mixture)
        return lambda x, sigma: posterior_mean(jnp, mixture, x.astype(dtype), sigma).astype(x.dtype)

    def _network(self) -> Callable:
        assert self.network is not None
        return self.network

    def torch_denoiser(self) -> Callable:
        """The same for PyTorch tensors."""
        import torch

        assert self.mixture is not None
        mixture = Mixture(*(None if a is None else torch.as_tensor(a, dtype=torch.float64) for a in self.mixture))
        return lambda x, sigma: posterior_mean(torch, mixture, x.double(), sigma).to(x.dtype)

    def exact_samples(self, n: int, seed: int) -> np.ndarray:
        """[n, ...] samples of the mixture itself."""
        assert self.mixture is not None
        means, log_weights, variances, axes = self.mixture
        rng = np.random.default_rng(seed)
        k = rng.choice(len(means), n, p=np.exp(log_weights - np.logaddexp.reduce(log_weights)))
        z = rng.standard_normal((n, *self.shape))
        if axes is None:
            return means[k] + np.sqrt(variances) * z
        return means[k] + np.einsum("nij,nj->ni", axes[k], np.sqrt(variances[k]) * z)


def integrate(
    denoise: Callable, x: Any, steps: int, progress: Callable = iter, high: float = SIGMA_MAX, low: float = SIGMA_MIN
) -> np.ndarray:
    """The state at `low`, denoised, of the solution of dx / dlog sigma = x - D from x at `high`: RK4 in float64."""
    x = np.asarray(x, np.float64)
    h = np.log(low / high) / steps

    def slope(y: np.ndarray, at: float) -> np.ndarray:
        return y - denoise(y, high * np.exp(h * at))

    for i in progress(range(steps)):
        k1 = slope(x, i)
        k2 = slope(x + h / 2 * k1, i + 0.5)
        k3 = slope(x + h / 2 * k2, i + 0.5)
        k4 = slope(x + h * k3, i + 1)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return np.asarray(denoise(x, low), np.float64)


# ---- the targets ----------------------------------------------------------------------------------------------------


def load(name: str) -> Target:
    """The target of that name. Raises ValueError for an unknown one, or if its data are not installed."""
    if name not in _MAKERS:
        raise ValueError(f"target {name!r}: must be one of {', '.join(NAMES)}")
    return _MAKERS[name]()


def _gaussians() -> Target:
    """A 3 x 3 grid of ellipses, each turned further than the one before."""
    grid = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), -1).reshape(9, 2)
    angle = np.arange(9) * np.pi / 9
    axes = np.stack([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    std = np.stack([np.linspace(0.1, 0.25, 9), np.linspace(0.05, 0.02, 9)], -1)
    mixture = Mixture(grid, np.zeros(9), std**2, axes)
    return Target("gaussians", "9 turned ellipses on a grid, 2-D", (2,), 256, mixture, pilots=1024)


def _digits() -> Target:
    images = _images("digits") / 8 - 1
    mixture = Mixture(images, np.zeros(len(images)), np.float64(0.05**2))
    return Target("digits", "1,797 digits with std 0.05, 64-D", (64,), 256, mixture, pilots=1024)


def _mnist() -> Target:
    images = _images("mnist5k")[:2000] / 127.5 - 1
    mixture = Mixture(images, np.zeros(len(images)), np.float64(0.05**2))
    return Target("mnist", "2,000 MNIST digits with std 0.05, 784-D", (784,), 64, mixture, pilots=512)


def _curve() -> Target:
    """200 narrow components along a curve that winds through eight dimensions."""
    t = np.arange(200) / 200
    waves = np.arange(1, 5)[:, None] * 2 * np.pi * t
    means = (np.concatenate([np.cos(waves), np.sin(waves)]) / np.tile([1, 2, 3, 4], 2)[:, None]).T
    mixture = Mixture(means, np.zeros(200), np.float64(0.02**2))
    return Target("curve", "200 points of a closed curve with std 0.02, 8-D", (8,), 256, mixture, pilots=1024)


def _spiral() -> Target:
    """40 flat ellipses along a spiral of radius 12, the outer ones larger and likelier."""
    t = np.sqrt(np.linspace(0.05, 1, 40))
    angle = 3 * 2 * np.pi * t
    means = 12 * t[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    turn = angle + np.arctan(angle)  # the direction of the curve
    axes = np.stack([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1)
    std = t[:, None] * np.array([1.0, 0.2])
    mixture = Mixture(means, np.log(t), std**2, axes)
    return Target("spiral", "a spiral of 40 ellipses, radius 12, 2-D", (2,), 256, mixture, pilots=1024)


def _in_float64(denoise: Callable) -> Callable[[Any, Any], np.ndarray]:
    import jax

    compiled = jax.jit(denoise)

    def wide(x: Any, sigma: Any) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(compiled(np.asarray(x, np.float64), np.float64(sigma)))

    return wide


def _noise(seed: int, seeds: int, shape: tuple[int, ...]) -> np.ndarray:
    return (SIGMA_MAX * np.random.default_rng(seed).standard_normal((seeds, *shape))).astype(np.float32)


def _images(name: str) -> np.ndarray:
    from diffax.data import raw

    splits = raw.read(name, Path())
    images = np.concatenate([splits[split][0] for split in ("train", "test")])
    return images.reshape(len(images), -1).astype(np.float64)


_MAKERS: dict[str, Callable[[], Target]] = {
    "gaussians": _gaussians,
    "digits": _digits,
    "mnist": _mnist,
    "curve": _curve,
    "spiral": _spiral,
}
NAMES = tuple(_MAKERS)


# ---- files ----------------------------------------------------------------------------------------------------------


def save(path: Path, target: Target, end: np.ndarray) -> None:
    """Writes a problem for `read` in another environment."""
    assert target.mixture is not None
    arrays = {name: a for name, a in target.mixture._asdict().items() if a is not None}
    text = {"name": target.name, "title": target.title, "seeds": target.seeds}
    np.savez(path, end=end, **text, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> tuple[Target, np.ndarray]:
    """A target and the exact ends of its starts, from `save`."""
    with np.load(path) as data:
        mixture = Mixture(*(data.get(name) for name in Mixture._fields))
        shape = mixture.means.shape[1:]
        return Target(str(data["name"]), str(data["title"]), shape, int(data["seeds"]), mixture), data["end"]


def _cache() -> Path:
    return Path("~/.cache/diffax/bench").expanduser()
