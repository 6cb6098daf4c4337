"""The noise schedules of the field, in closed form.

Each is its quantile function logsnr(u), with v = 1 - u written wherever a formula is sharp at u -> 1, and its inverse.
Families of infinite range reach logsnr = +-inf at the ends; `truncate` makes them finite.

| name | logsnr(u) | density | source |
|---|---|---|---|
| cosine | -2 log tan(pi u / 2) | sech(l / 2) / (2 pi) | Nichol & Dhariwal 2021, Hang & Gu 2024 |
| cosine_shifted | mean - 2 log tan(pi u / 2) | sech((l - mean) / 2) / (2 pi) | Hang & Gu 2024; simple diffusion |
| cosine_scaled | -(2 / s) log tan(pi u / 2) | s sech(s l / 2) / (2 pi) | Hang & Gu 2024 |
| laplace, cauchy | quantiles of these laws | of these laws | Hang & Gu 2024 |
| edm, logit_normal | -2 (m + s Phi^-1(u)) | Normal(-2 m, (2 s)^2) | Karras et al. 2022; Esser et al. 2024 (SD3) |
| flow | 2 log((1 - u) / u) | sech^2(l / 4) / 8 | rectified flow, uniform t |
| karras | -2 rho log(a (1 - u) + b u) | see there | Karras et al. 2022, eq. 5 |
| polynomial | karras at u^power | see there | Gokmen et al. 2024 |
| uniform, geometric | linear in u | constant | VDM; VE of Song et al. 2021 |
| linear_beta | -log(exp(B(u)) - 1) | see there | VP of Song et al. 2021, Ho et al. 2020 |
| sigmoid | see there | see there | Jabri et al. 2022 |
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

from diffax import _check
from diffax._array import Scalar, clip
from diffax.schedules import arguments
from diffax.schedules.combinators import power as _power
from diffax.schedules.combinators import scale as _scale
from diffax.schedules.combinators import shift as _shift
from diffax.schedules.inversion import density_of
from diffax.schedules.schedule import Schedule

__all__ = [
    "cauchy",
    "cosine",
    "cosine_scaled",
    "cosine_shifted",
    "edm",
    "flow",
    "geometric",
    "karras",
    "laplace",
    "linear_beta",
    "logit_normal",
    "polynomial",
    "sigmoid",
    "uniform",
]


def cosine(s: Scalar = 0.0) -> Schedule:
    """alpha^2 = cos^2(a) / cos^2(a_0), a = pi/2 (u + s) / (1 + s), a_0 = a(0).

    Nichol & Dhariwal 2021 (arXiv:2102.09672), who take s = 0.008. s = 0 is the continuous form
    logsnr = -2 log tan(pi u / 2), of density sech(logsnr / 2) / (2 pi). Raises ValueError unless s is in [0, 1].
    """
    s = arguments.between("s", s, 0, 1)
    unit = math.pi / 2 / (1 + s)
    a0 = unit * s

    def quantile(u: Array, v: Array) -> Array:
        # 1 - alpha^2 = sin(a + a_0) sin(a - a_0) / cos^2(a_0), and cos(a) = sin(unit v)
        return 2 * jnp.log(jnp.sin(unit * v)) - jnp.log(jnp.sin(unit * u)) - jnp.log(jnp.sin(unit * (u + 2 * s)))

    def tails(lam: Array) -> tuple[Array, Array]:
        cos = jnp.sqrt(jax.nn.sigmoid(lam)) * jnp.cos(a0)
        noise = jax.nn.sigmoid(-lam) * jnp.cos(a0) ** 2  # sin^2(a) - sin^2(a_0)
        sin = jnp.sqrt(jnp.sin(a0) ** 2 + noise)
        a = jnp.arctan2(sin, cos)
        near = jnp.arcsin(
            jnp.minimum(noise / jnp.maximum(jnp.sin(a + a0), 1e-30), 0.8)
        )  # a - a_0 without the difference
        return jnp.where(a < math.pi / 4, near, a - a0) / unit, jnp.arctan2(cos, sin) / unit

    return Schedule(quantile, tails, density_of(tails))


def cosine_shifted(mean: Scalar = 0.0) -> Schedule:
    """cosine() moved to `mean` in logSNR (Hang & Gu 2024; Hoogeboom et al. 2023 with mean = 2 log(64 / side)).

    Raises ValueError unless mean is finite.
    """
    mean = arguments.finite("mean", mean)
    return _shift(cosine(), mean)


def cosine_scaled(s: Scalar = 2.0) -> Schedule:
    """-(2 / s) log tan(pi u / 2): cosine() narrowed s times about logSNR 0 (Hang & Gu 2024). s > 0."""
    s = arguments.positive("s", s)
    return _scale(cosine(), 1 / s)


def edm(p_mean: Scalar = -1.2, p_std: Scalar = 1.2) -> Schedule:
    """log sigma ~ Normal(p_mean, p_std^2): the training levels of EDM (Karras et al. 2022, arXiv:2206.00364, table 1).

    In logSNR it is Normal(-2 p_mean, (2 p_std)^2). Raises ValueError unless p_std > 0.
    """
    p_mean = arguments.finite("p_mean", p_mean)
    p_std = arguments.positive("p_std", p_std)

    def quantile(u: Array, v: Array) -> Array:
        z = jnp.where(u < v, ndtri(u), -ndtri(v))  # the smaller tail is the sharper one
        return -2 * (p_mean + p_std * z)

    def tails(lam: Array) -> tuple[Array, Array]:
        z = -(lam / 2 + p_mean) / p_std
        return ndtr(z), ndtr(-z)

    def density(lam: Array) -> Array:
        z = (lam / 2 + p_mean) / p_std
        return jnp.exp(-(z**2) / 2) / (2 * p_std * math.sqrt(2 * math.pi))

    return Schedule(quantile, tails, density)


def logit_normal(mean: Scalar = 0.0, std: Scalar = 1.0, ratio: Scalar = 1.0) -> Schedule:
    """Flow time t = sigmoid(Normal(mean, std^2)), then t' = ratio t / (1 + (ratio - 1) t): Stable Diffusion 3.

    log sigma = logit(t), so this is `edm(mean + log ratio, std)` (Esser et al. 2024, arXiv:2403.03206, section 3.1 and,
    for the shift to larger pictures, section 5.3.2). Raises ValueError unless std > 0 and ratio > 0.
    """
    mean = arguments.finite("mean", mean)
    std = arguments.positive("std", std)
    ratio = arguments.positive("ratio", ratio)
    return edm(mean + _log(ratio), std)


def flow(ratio: Scalar = 1.0) -> Schedule:
    """logsnr = 2 log((1 - u) / u) - 2 log(ratio): rectified flow, alpha = 1 - t, sigma_t = t (arXiv:2209.03003).

    t = u for ratio 1, of density sech(logsnr / 4)^2 / 8; otherwise t = ratio u / (1 + (ratio - 1) u), the shift of
    Stable Diffusion 3 to larger pictures. Raises ValueError unless ratio > 0.
    """
    ratio = arguments.positive("ratio", ratio)
    plain = Schedule(
        quantile=lambda u, v: 2 * (jnp.log(v) - jnp.log(u)),
        tails=lambda lam: (jax.nn.sigmoid(-lam / 2), jax.nn.sigmoid(lam / 2)),
        density=lambda lam: jax.nn.sigmoid(lam / 2) * jax.nn.sigmoid(-lam / 2) / 2,
    )
    return _shift(plain, -2 * _log(ratio))


def laplace(mean: Scalar = 0.0, scale: Scalar = 0.5) -> Schedule:
    """logsnr ~ Laplace(mean, scale): Hang & Gu 2024 (arXiv:2407.03297), who take mean 0, scale 0.5 at 256 pixels.

    Raises ValueError unless scale > 0.
    """
    mean = arguments.finite("mean", mean)
    scale = arguments.positive("scale", scale)

    def tails(lam: Array) -> tuple[Array, Array]:
        z = (lam - mean) / scale
        near = jnp.exp(-jnp.abs(z)) / 2
        return jnp.where(z > 0, near, 1 - near), jnp.where(z > 0, 1 - near, near)

    return Schedule(
        quantile=lambda u, v: mean + scale * jnp.where(u < v, -jnp.log(2 * u), jnp.log(2 * v)),
        tails=tails,
        density=lambda lam: jnp.exp(-jnp.abs(lam - mean) / scale) / (2 * scale),
    )


def cauchy(mean: Scalar = 0.0, scale: Scalar = 1.0) -> Schedule:
    """logsnr ~ Cauchy(mean, scale): heavy tails (Hang & Gu 2024). Raises ValueError unless scale > 0."""
    mean = arguments.finite("mean", mean)
    scale = arguments.positive("scale", scale)
    return Schedule(
        # cot(pi u), from the nearer end
        quantile=lambda u, v: mean + scale * jnp.where(u < v, 1 / jnp.tan(math.pi * u), -1 / jnp.tan(math.pi * v)),
        tails=lambda lam: (jnp.arctan2(scale, lam - mean) / math.pi, jnp.arctan2(scale, mean - lam) / math.pi),
        density=lambda lam: scale / (math.pi * ((lam - mean) ** 2 + scale**2)),
    )


def uniform(logsnr_min: Scalar = -10.0, logsnr_max: Scalar = 10.0) -> Schedule:
    """logsnr uniform between its ends, linear in u (VDM, arXiv:2107.00630). logsnr_min < logsnr_max."""
    logsnr_min = arguments.finite("logsnr_min", logsnr_min)
    logsnr_max = arguments.finite("logsnr_max", logsnr_max)
    _check.less("logsnr_min", logsnr_min, "logsnr_max", logsnr_max)
    width = logsnr_max - logsnr_min

    def tails(lam: Array) -> tuple[Array, Array]:
        return clip((logsnr_max - lam) / width, 0, 1), clip((lam - logsnr_min) / width, 0, 1)

    return Schedule(
        quantile=lambda u, v: logsnr_max * v + logsnr_min * u,
        tails=tails,
        density=lambda lam: jnp.where((lam >= logsnr_min) & (lam <= logsnr_max), 1 / width, 0.0),
    )


def geometric(sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0) -> Schedule:
    """sigma = sigma_min^(1 - u) sigma_max^u, the variance-exploding SDE of Song et al. 2021 (arXiv:2011.13456).

    Uniform in logSNR; as a grid, the exponential one. Raises ValueError unless 0 < sigma_min < sigma_max.
    """
    sigma_min = arguments.positive("sigma_min", sigma_min)
    sigma_max = arguments.positive("sigma_max", sigma_max)
    _check.less("sigma_min", sigma_min, "sigma_max", sigma_max)
    return uniform(-2 * _log(sigma_max), -2 * _log(sigma_min))


def karras(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0, rho: Scalar = 7.0) -> Schedule:
    """sigma^(1/rho) linear in u, from sigma_min to sigma_max (Karras et al. 2022, eq. 5).

    Raises ValueError unless 0 < sigma_min < sigma_max and rho > 0.
    """
    sigma_min = arguments.positive("sigma_min", sigma_min)
    rho = arguments.positive("rho", rho)
    sigma_max = arguments.positive("sigma_max", sigma_max)
    _check.less("sigma_min", sigma_min, "sigma_max", sigma_max)
    top, bottom = -2 * _log(sigma_min), -2 * _log(sigma_max)  # logSNR at u = 0 and u = 1
    up, down = _expm1((top - bottom) / (2 * rho)), -_expm1((bottom - top) / (2 * rho))

    def quantile(u: Array, v: Array) -> Array:
        # From the nearest of u = 0, 1/2, 1, as rho would multiply the rounding of a long way.
        clean, noisy = u < 0.25, v < 0.25
        anchor = jnp.where(clean, top, jnp.where(noisy, bottom, top - 2 * rho * _log(1 + up / 2)))
        rise = jnp.where(clean, up * u, jnp.where(noisy, -down * v, up / (1 + up / 2) * (u - v) / 2))
        return anchor - 2 * rho * jnp.log1p(rise)

    def tails(lam: Array) -> tuple[Array, Array]:
        lam = clip(lam, bottom, top)
        u, v = jnp.expm1((top - lam) / (2 * rho)) / up, -jnp.expm1((bottom - lam) / (2 * rho)) / down
        return clip(u, 0, 1), clip(v, 0, 1)

    def density(lam: Array) -> Array:
        # The support is closed: rounding must not push its own ends outside.
        inside = (lam >= bottom - 1e-5) & (lam <= top + 1e-5)
        return jnp.where(inside, jnp.exp((top - lam) / (2 * rho)) / (2 * rho * up), 0)

    return Schedule(quantile, tails, density)


def polynomial(power: Scalar = 4.0, sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0, rho: Scalar = 7.0) -> Schedule:
    """karras() at u^power: the polynomial noise distribution of Gokmen et al. 2024 (arXiv:2404.06353).

    The larger the power, the more low noise; 4 is the published best. The paper rounds u^power to an index into a
    Karras grid and jitters it; this is its continuous form. Raises ValueError unless power > 0, and as `karras` does.
    """
    power = arguments.positive("power", power)
    return _power(karras(sigma_min, sigma_max, rho), power)


def linear_beta(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> Schedule:
    """The variance-preserving SDE: beta(t) linear, t = u (Song et al. 2021, arXiv:2011.13456, appendix C).

    alpha^2 = exp(-B), B = beta_min u + (beta_max - beta_min) u^2 / 2; logsnr = -log(exp(B) - 1). It is the continuous
    form of DDPM's betas; `linear_betas` has the discrete ones. Raises ValueError unless 0 < beta_min < beta_max.
    """
    beta_min = arguments.positive("beta_min", beta_min)
    beta_max = arguments.positive("beta_max", beta_max)
    _check.less("beta_min", beta_min, "beta_max", beta_max)
    rise = beta_max - beta_min
    total = beta_min + rise / 2

    def quantile(u: Array, v: Array) -> Array:
        return -_log_expm1(u * (beta_min + rise / 2 * u))

    def tails(lam: Array) -> tuple[Array, Array]:
        b = jnp.minimum(jax.nn.softplus(-lam), total)
        root = jnp.sqrt(beta_min**2 + 2 * rise * b)
        # v: the same quadratic solved from the other end, where B is total - (beta_max v - rise v^2 / 2)
        left = total - b
        return clip(2 * b / (beta_min + root), 0, 1), clip(2 * left / (beta_max + root), 0, 1)

    def density(lam: Array) -> Array:
        b = jax.nn.softplus(-lam)
        slope = jnp.sqrt(beta_min**2 + 2 * rise * b)  # dB/du
        inside = b <= total * (1 + 1e-6)
        return jnp.where(inside, jax.nn.sigmoid(-lam) / slope, 0)

    return Schedule(quantile, tails, density)


def sigmoid(start: Scalar = -3.0, end: Scalar = 3.0, tau: Scalar = 1.0) -> Schedule:
    """alpha^2 = (s(end) - s(z)) / (s(end) - s(start)), s the logistic function of z / tau, z = start + (end - start) u.

    Jabri et al. 2022 (arXiv:2212.11972). Raises ValueError unless start < end and tau > 0.
    """
    start = arguments.finite("start", start)
    end = arguments.finite("end", end)
    _check.less("start", start, "end", end)
    tau = arguments.positive("tau", tau)
    half = (end - start) / (2 * tau)
    # s(a) - s(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)): the cosh of z cancels in the ratio
    with jax.ensure_compile_time_eval():  # a constant under jit too
        offset = _log_cosh(start / (2 * tau)) - _log_cosh(end / (2 * tau))

    def tails(lam: Array) -> tuple[Array, Array]:
        # sinh(half v) = r sinh(half u), solved for exp(2 half u) and, with 1 / r, for exp(2 half v)
        r, ends = jnp.exp(lam - offset), 2 * jnp.sinh(half)
        return (
            jnp.log1p(ends / (r + jnp.exp(-half))) / (2 * half),
            jnp.log1p(ends / (jnp.exp(offset - lam) + jnp.exp(-half))) / (2 * half),
        )

    return Schedule(
        lambda u, v: _log_sinh(half * v) - _log_sinh(half * u) + offset,
        tails,
        density_of(tails),
    )


def _log(x: Scalar) -> Any:
    """Of a parameter: in float64 where it is a number."""
    return np.log(x) if _check.concrete(x) else jnp.log(x)


def _expm1(x: Scalar) -> Any:
    return np.expm1(x) if _check.concrete(x) else jnp.expm1(x)


def _log_expm1(x: Array) -> Array:
    """log(exp(x) - 1) for x >= 0, without overflow."""
    return x + jnp.log(-jnp.expm1(-x))


def _log_sinh(x: Array) -> Array:
    return x + jnp.log(-jnp.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: Scalar) -> Scalar:
    return jnp.logaddexp(x, -x) - np.log(2)
