"""Stochastic solvers: the reverse process with noise put back, and Langevin steps.

For every f with f / sigma not falling, the process that runs from sigma = s down to t < s by

    x_t = f(t) / f(s) x_s + f(t) int_t^s D (f' / f^2) dsigma + sqrt(t^2 - (f(t) / f(s))^2 s^2) z

has at every sigma the law of data + sigma noise (Cui et al. 2023, arXiv:2309.06169; Song et al. 2021,
arXiv:2011.13456). f = sigma is the probability-flow ODE; f = sigma^(1 + eta) puts back eta times the noise of the
reverse SDE (eta = 1), dx = (1 + eta) (x - D) dlog sigma + sqrt(2 eta) sigma dw. This is data space `integral.x0(f)`
with noise, so each method is a method for the ODE with another f. The integral is approximated as there, the noise is
exact; where the grid ends in sigma = 0, the end is x = D.

Orders are of convergence in distribution. Whatever the polynomial, 2 is the most: D along the path is not smooth, but
rough as the noise is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import per_sample
from diffax.solvers import integral
from diffax.solvers.linear import (
    Rows,
    Solver,
    columns,
    counted,
    end_at_zero,
    known,
    linear,
    numpy_for,
    single_step,
)
from diffax.solvers.multistep import multistep, power_space, published_x0
from diffax.solvers.single_step import Noise, heun_stages, three_stages, two_stages

__all__ = [
    "ancestral",
    "annealed_langevin",
    "dpmpp_1_sde",
    "dpmpp_2m_sde",
    "dpmpp_2s_sde",
    "dpmpp_3m_sde",
    "dpmpp_3s_sde",
    "edm_stochastic",
    "er_sde",
    "predictor_corrector",
    "sa_solver",
]


Fraction = Callable[[Array, Array], Array]
"""fraction(x, sigma) -> [batch, ...] of the shape of x, see `ancestral`."""


def ancestral(eta: float = 1.0, variance: str | float | Fraction = "small") -> Solver:
    """Ancestral sampling: Euler's step to below t, and noise up to t. Order 1, n evaluations.

    eta = 1 draws from DDPM's posterior (Ho et al. 2020, arXiv:2006.11239, eq. 7), eta in [0, 1] is DDIM(eta) (Song et
    al. 2021, arXiv:2010.02502, eq. 16) and k-diffusion's Euler-ancestral: sigma_up = eta t sqrt(1 - t^2 / s^2),
    sigma_down = sqrt(t^2 - sigma_up^2). In small steps it is the SDE of strength eta^2.

    Args:
      eta: strength of the noise, in [0, 1].
      variance: of the noise, with eta = 1 alone; the mean of the step stays that of the posterior. In x = x_t / alpha,
        from s to t:
          "small": t^2 (s^2 - t^2) / s^2, of the posterior.
          "large": (s^2 - t^2) (1 + t^2) / (1 + s^2), DDPM's beta_t (Ho et al. 2020, section 3.2).
          a number in [0, 1]: between them in the logarithm, 0 small and 1 large.
          a function fraction(x, sigma) -> [batch, ...] of the shape of x, such a number for each pixel. It is (v + 1) /
            2 of the v in [-1, 1] that an improved DDPM predicts (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15). It
            sees x and sigma as the denoiser does. It is not clipped.
        The step to sigma = 0 has no noise.

    Raises: ValueError for arguments that are not as described.
    """
    eta = _strength("eta", eta, 1)
    part = 0.0
    if isinstance(variance, str):
        _check.one_of("variance", variance, ("small", "large"))
        part = float(variance == "large")
    elif not callable(variance):
        part = _strength("variance", variance, 1)
    if eta != 1 and (callable(variance) or part != 0):
        raise ValueError(f"eta = {eta}: must be 1 with another variance than 'small'")
    if callable(variance):
        return _learned_variance(variance)
    return single_step(1, 1, lambda s, t: [_ancestral(s, t, eta, part)], stochastic=eta > 0)


def edm_stochastic(churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003) -> Solver:
    """EDM's stochastic sampler: noise is added, then Heun's step is taken from there (Karras et al. 2022, algorithm 2).

    A step from s first raises the noise to s_hat = s (1 + min(churn / n, sqrt(2) - 1)), where s_min <= s <= s_max. Of
    order 2 from a start that has the law of data + noise (no other law is kept fixed as n grows); 2n - 1 evaluations.

    Values of table 5 for (churn, s_min, s_max, s_noise): CIFAR-10 VP (30, 0.01, 1, 1.007), CIFAR-10 VE (80, 0.05, 1,
    1.007), ImageNet-64 ADM (80, 0.05, 50, 1.003), ImageNet-64 EDM (40, 0.05, 50, 1.003), the default.

    Raises: ValueError unless churn is in [0, 1e6], s_noise in [0, 10] and 0 <= s_min <= s_max, which may be infinite.
    """
    churn, s_noise = _strength("churn", churn, 1e6), _strength("s_noise", s_noise)
    s_min, s_max = _strength("s_min", s_min, np.inf), _strength("s_max", s_max, np.inf)
    if s_min > s_max:
        raise ValueError(f"s_min = {s_min}: must be at most s_max = {s_max}")

    def stages(s: Any, t: Any) -> list[Rows]:
        xp = numpy_for(s)
        gamma = xp.where((s >= s_min) & (s <= s_max), min(churn / len(s), 2**0.5 - 1), 0.0)
        hat = s * (1 + gamma)
        raised = s_noise * s * xp.sqrt(gamma * (2 + gamma))
        first, second = heun_stages(hat, t)
        return [first._replace(before=raised), second._replace(before=0 * s)]

    return single_step(2, 2, stages if churn > 0 else heun_stages, stochastic=churn > 0)


def dpmpp_1_sde(eta: float = 1.0) -> Solver:
    """SDE-DPM-Solver++(1) (Lu et al. 2022, arXiv:2211.01095). Order 1, n evaluations.

    With eta = 1 it is ancestral sampling.
    """
    return _published(1, eta)


def dpmpp_2m_sde(eta: float = 1.0) -> Solver:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095), as in k-diffusion ("midpoint"). n evaluations.

    eta, in [0, 10] here and below, is the strength of the noise; with eta = 0 it is `dpmpp_2m`. Order 2.
    """
    return _published(2, eta)


def dpmpp_3m_sde(eta: float = 1.0, corrected: bool = False) -> Solver:
    """DPM-Solver++(3M) with noise, as in k-diffusion; with eta = 0 it is `dpmpp_3m`. Order 2, n evaluations.

    `corrected` gives its second difference the factor 2 that it lacks as published: the polynomial is then exact, and
    the error in small steps about half. The second step is that of 2M.
    """
    return _published(3, eta, corrected)


def dpmpp_2s_sde(eta: float = 1.0, r: float = 0.5) -> Solver:
    """DPM-Solver++(2S) with noise: D at s and at s exp(-r h). Order 2, 2n - 1 evaluations.

    k-diffusion's DPM++ SDE, but the noise on the way to the second evaluation is that of the SDE's own path, of which
    the end of the step has what is left there: SEEDS-2 (Gonzalez et al. 2023, arXiv:2305.14267) of data prediction.
    """
    eta = _strength("eta", eta)
    return two_stages(power_space(1 + eta), r, _power_noise(eta))


def dpmpp_3s_sde(eta: float = 1.0) -> Solver:
    """DPM-Solver++(3S) with noise: SEEDS-3 of data prediction, as `dpmpp_2s_sde`. 3n - 2 evaluations.

    Order 2, and 3 with eta = 0, where it is `dpmpp_3s`.
    """
    eta = _strength("eta", eta)
    return three_stages(power_space(1 + eta), 1 / 3, 2 / 3, _power_noise(eta))


def er_sde(order: int = 3) -> Solver:
    """ER-SDE-Solver (Cui et al. 2023, arXiv:2309.06169), orders 1 to 3, n evaluations.

    f = sigma (exp(sigma^0.3) + 10), little noise at the end; D is a polynomial in sigma through `order` values. With
    three this is the parabola through them: the published code takes the difference of the newest two for the
    derivative at the newest, as if they were no distance apart. Of order min(order, 2) in distribution.
    """
    _check.whole("order", order, 1, 3)

    def g(s: Any) -> Any:
        return numpy_for(s).exp(s**0.3) + 10

    space = integral.x0(lambda s: s * g(s), lambda s: g(s) + 0.3 * s**0.3 * (g(s) - 10))
    rule = integral.exact(space, integral.sigma())
    return multistep(order, space, rule, noise=_noise(lambda s: numpy_for(s).log(g(s))), declared=min(order, 2))


def sa_solver(
    tau: float = 1.0,
    predictor: int = 3,
    corrector: int = 4,
    interval: tuple[float, float] | None = None,
    bootstrap: bool = False,
) -> Solver:
    """SA-Solver: stochastic Adams predictor-corrector (Xue et al. 2023, arXiv:2309.05019). n evaluations.

    f = sigma^(1 + tau^2) where sigma lies in `interval` (everywhere if None) and the ODE's outside it: log f = log
    sigma + tau^2 clip(log sigma, log low, log high). Predictor and corrector have the same noise.

    Args:
      tau: strength of the noise, eta = tau^2, in [0, 3]; 0 for the ODE.
      predictor, corrector: how many values their polynomials in logSNR go through, 1 to 4 and 2 to 4, the corrector's
        with that at the predicted point. The paper takes 3 and 4, and with strong guidance 2 and 2.
      interval: (low, high) in sigma. The published default ends the noise at both ends of the grid.
      bootstrap: as in `unipc`; it matters for tau = 0 alone.

    Order 2; for tau = 0 min(predictor + 1, corrector), without bootstrap at most 3.

    Raises: ValueError for arguments that are not as described.
    """
    tau = _strength("tau", tau, 3)
    _check.whole("predictor", predictor, 1, 4)
    _check.whole("corrector", corrector, 2, 4)
    _check.flags(bootstrap=bootstrap)
    low, high = _interval(interval)

    def log_g(s: Any) -> Any:
        xp = numpy_for(s)
        return tau**2 * xp.log(xp.clip(s, low, high))

    def f(s: Any) -> Any:
        return s * numpy_for(s).exp(log_g(s))

    def slope(s: Any) -> Any:
        return f(s) / s * numpy_for(s).where((s > low) & (s < high), 1 + tau**2, 1.0)

    exact = integral.exact(integral.x0(f, slope), integral.log_sigma())

    def rule(nodes: Any, s: Any, t: Any) -> list[Any]:
        # Where f has a kink inside the step, quadrature leaves a residual; a constant D must still be kept.
        _, *others = exact(nodes, s, t)
        return [1 - f(t) / f(s) - sum(others), *others]

    declared = min(predictor + 1, corrector)
    declared = min(declared, 2) if tau > 0 else declared if bootstrap else min(declared, 3)
    return multistep(
        predictor,
        integral.x0(f, slope),
        rule,
        (corrector, rule),
        bootstrap=bootstrap,
        declared=declared,
        noise=_noise(log_g) if tau > 0 else None,
    )


def predictor_corrector(snr: float = 0.16, corrections: int = 1) -> Solver:
    """Song et al.'s predictor-corrector (2021, arXiv:2011.13456, algorithm 2): ancestral steps, each followed by
    Langevin steps at the level it came to. (1 + corrections) (n - 1) + 1 evaluations.

    Their Langevin step, x += e score + sqrt(2 e) z, has e = 2 (snr ||z|| / ||score||)^2 with norms averaged over the
    batch; here these are the norms' expectations, sqrt(d) and sqrt(d) / sigma, so e = 2 snr^2 sigma^2 and a sample
    does not depend on its batch. snr is in (0, 1], beyond which these steps diverge, and `corrections` from 0 to 1000.

    Order 0: Langevin steps of a fixed size have a bias that no number of levels removes, of snr^2 sigma^2 / (sigma^2 +
    c^2) of the variance for data of scale c. So let the grid end low.
    """
    _check.positive("snr", snr)
    snr = _strength("snr", snr, 1)
    _check.whole("corrections", corrections, 0, 1000)
    return single_step(
        0 if corrections else 1,
        1 + corrections,
        lambda s, t: [_ancestral(s, t, 1.0), *[_langevin(t, 4 * snr**2)] * corrections],
        stochastic=True,
    )


def annealed_langevin(step: float = 0.1, corrections: int = 5) -> Solver:
    """Annealed Langevin dynamics (NCSN, Song & Ermon 2019, arXiv:1907.05600, algorithm 1), from level to level as is.

    At each sigma after the first, where x lies already, `corrections` steps x += a / 2 score + sqrt(a) z with a = step
    sigma^2 (the paper's step is its epsilon / sigma_L^2, 0.2 in its experiments, with 100 corrections); where the
    grid ends in 0, x = D of the last level. corrections (n - 1) + 1 evaluations. Order 0, see `predictor_corrector`,
    whose 4 snr^2 is this step; and the levels must lie close for so many corrections to follow. step is in (0, 4],
    beyond which it diverges, and `corrections` from 1 to 10,000.
    """
    _check.positive("step", step)
    step = _strength("step", step, 4)
    _check.whole("corrections", corrections, 1, 10_000)

    def rows(sigmas: Any, to_zero: bool) -> Rows:
        xp = numpy_for(sigmas)
        levels = xp.repeat(sigmas[1:-1] if to_zero else sigmas[1:], corrections, axis=0)
        ends = np.arange(corrections - 1, len(levels), corrections)
        if not to_zero:
            return _langevin(levels, step)._replace(ends=ends)
        count = len(levels) + 1
        table = _langevin(xp.concatenate([levels, sigmas[-2:-1]]), step)
        return end_at_zero(table._replace(ends=np.append(ends, count - 1)), count)

    return linear(0, lambda n: corrections * (n - 1) + 1, rows, stochastic=True)


# ---- parts ----------------------------------------------------------------------------------------------------------


def _published(order: int, eta: float, corrected: bool = False) -> Solver:
    eta = _strength("eta", eta)
    _check.flags(corrected=corrected)
    space, rule = power_space(1 + eta), published_x0(eta, corrected)
    return multistep(order, space, rule, noise=_power_noise(eta), declared=min(order, 2))


def _power_noise(eta: float) -> Noise | None:
    return _noise(lambda s: eta * numpy_for(s).log(s)) if eta > 0 else None


def _noise(log_g: Callable[[Any], Any]) -> Noise:
    """(s, t) -> sqrt(t^2 - (f(t) / f(s))^2 s^2) for f = sigma g, without cancellation."""

    def std(s: Any, t: Any) -> Any:
        xp = numpy_for((s, t))
        gap = log_g(s) - log_g(t)
        noisy = gap > 0
        return xp.where(noisy, t * xp.sqrt(-xp.expm1(-2 * xp.where(noisy, gap, 1.0))), 0.0)  # sqrt has no slope at 0

    return std


def _ancestral(s: Any, t: Any, eta: float, part: float = 0.0) -> Rows:
    """`part` of the way from the posterior's variance to DDPM's beta, in the logarithm."""
    xp = numpy_for((s, t))
    rest = 1 - (t / s) ** 2
    down, up = t / s * xp.sqrt(1 - eta**2 * rest), eta * t * xp.sqrt(rest) * xp.exp(part * _spread(s, t))
    step = columns(s, down, 1 - down)
    return Rows(s, step, step, after=columns(s, up, up) if eta > 0 else None)


def _spread(s: Any, t: Any) -> Any:
    """log(large / small) / 2 of the two variances of DDPM: s^2 (1 + t^2) / (t^2 (1 + s^2)) is the ratio."""
    xp = numpy_for((s, t))
    return xp.log(s / t) - (xp.log1p(s**2) - xp.log1p(t**2)) / 2


class _Steps(NamedTuple):
    """Of each step: its sigma, the posterior's share of x, its standard deviation, and `_spread`."""

    sigma: Any
    share: Any
    std: Any
    spread: Any
    ends: None = None


def _learned_variance(fraction: Fraction) -> Solver:
    """Ancestral sampling with a variance that depends on x, which no table can."""

    def rows(sigmas: Any, to_zero: bool) -> _Steps:
        xp = numpy_for(sigmas)
        s, t = sigmas[:-1], sigmas[1:]
        share = (t / s) ** 2
        std = t * xp.sqrt(1 - share)
        if not to_zero:
            return _Steps(s, share, std, _spread(s, t))
        spread = _spread(s[:-1], t[:-1])  # not of the step to 0, where it is infinite
        return _Steps(s, share, std, xp.concatenate([spread, 0 * s[-1:]]))

    def step(denoise: Callable, carry: tuple[Array, ...], row: _Steps, noise: Callable) -> tuple[Array, ...]:
        (x,) = carry
        value = denoise(x, row.sigma).astype(x.dtype)
        part = _check.output("variance", fraction(x, row.sigma), x).astype(x.dtype)
        share, std, spread = (per_sample(c, x) for c in (row.share, row.std, row.spread))
        return (share * x + (1 - share) * value + std * jnp.exp(part * spread) * noise(1),)

    return Solver(1, counted(lambda n: n), rows, lambda x, rows: (x,), step, stochastic=True)


def _langevin(level: Any, step: float) -> Rows:
    """x += a / 2 score + sqrt(a) z with a = step sigma^2."""
    move, z = columns(level, 1 - step / 2, step / 2), step**0.5 * level
    return Rows(level, move, move, after=columns(level, z, z))


def _strength(name: str, value: float, most: float = 10) -> float:
    """A number from 0 to `most`. Stronger noise than 10 has coefficients beyond the range of floats."""
    _check.between(name, value, 0, most)
    return known(name, value)


def _interval(interval: tuple[float, float] | None) -> tuple[float, float]:
    """(low, high) in sigma with 0 <= low < high; everything for None."""
    if interval is None:
        return 0.0, np.inf
    sentence = f"interval = {_check.shown(interval)}: must be (low, high) in sigma with 0 <= low < high"
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise ValueError(sentence)
    low, high = (_strength(f"interval[{i}]", value, np.inf) for i, value in enumerate(interval))
    if not low < high:
        raise ValueError(sentence)
    return low, high
