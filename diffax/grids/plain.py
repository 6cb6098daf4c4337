"""The grid to take when nothing is known of the data but that they are of order one."""

import math

import numpy as np

from diffax.grids.arguments import level, whole

__all__ = ["plain"]

_erf = np.vectorize(math.erf, otypes=[float])


def plain(n: int, sigma_max: float = 80.0, sigma_data: float = 1.0) -> np.ndarray:
    """n steps from sigma_max to 0, even in a mixture of the uniform law of log sigma and a normal one around 0.6.

    The density of log(sigma / sigma_data) is 1 + 1.5 exp(-(log sigma - log 0.6)^2 / (2 1.5^2)) down to 0.3 / n: evenly
    everywhere, as nothing is known, and more than twice as densely where data of that scale are decided, the argument
    of the log-normal training levels of EDM (Karras et al. 2022, section 5). The last level falls with n, because the
    step from it to 0 should err as little as the others and no less. The four numbers were chosen on the targets of
    `experiments.bench_solvers`, which say how well they do.

    Args:
      n: steps, 1 to 100,000.
      sigma_max: the first sigma, up to 1e15.
      sigma_data: the scale of the data, about their standard deviation.

    Returns: [n + 1] sigmas in float64, strictly descending, the last one 0.

    Raises: ValueError for arguments that are not as described, and unless sigma_max > 0.3 sigma_data / n.
    """
    whole(n=n)
    sigma_max, sigma_data = level("sigma_max", sigma_max), level("sigma_data", sigma_data)
    lowest = 0.3 * sigma_data / n
    if not lowest < sigma_max:
        raise ValueError(f"sigma_max = {sigma_max}: must be greater than 0.3 sigma_data / n = {lowest}")
    if n == 1:
        return np.array([sigma_max, 0.0])
    low, high, centre, spread = np.log(lowest), np.log(sigma_max), np.log(0.6 * sigma_data), 1.5

    def mass(y: np.ndarray) -> np.ndarray:
        """The integral of the density up to log sigma = y. NumPy: a dozen numbers are not worth compiling for."""
        return y + 1.5 * spread * np.sqrt(np.pi / 2) * _erf((y - centre) / (spread * np.sqrt(2)))

    wanted = np.linspace(mass(high), mass(low), n)
    below, above = np.full(n, low), np.full(n, high)
    for _ in range(60):  # halves the interval, down to the last bit
        middle = (below + above) / 2
        under = mass(middle) < wanted
        below, above = np.where(under, middle, below), np.where(under, above, middle)
    sigmas = np.append(np.exp(above), 0.0)
    sigmas[0] = sigma_max
    return sigmas
