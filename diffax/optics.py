"""Microscopes as pure functions: blur, defocus and noise, the forward models of inverse problems in microscopy.

Light that passes a linear, shift-invariant instrument is multiplied, frequency by frequency, by its transfer function.
Fluorescence is incoherent: intensities are blurred by a point spread function of unit sum, whose transform is 1 at
frequency 0. A transparent object is seen by coherent light: the field exp(i phase) propagates, and only its intensity
is recorded, in and out of focus (Goodman, Introduction to Fourier Optics, sections 3.10 and 6.3).

Images are [..., height, width, channels] and periodic: pad them (`numpy.pad(mode="symmetric")`) where the other side
must not shine in. Lengths are in pixels, or in the unit of `pixel`. Transfer functions are constants, found in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, noise
from diffax._array import at_least_float32

__all__ = ["airy", "binned", "blur", "defocused", "gaussian", "photons", "propagate", "propagation"]


# ---- incoherent light -----------------------------------------------------------------------------------------------


def gaussian(shape: tuple[int, int], sigma: float) -> np.ndarray:
    """The transfer function exp(-2 pi^2 sigma^2 f^2) of a Gaussian point spread function, [height, width].

    sigma: its standard deviation in pixels. Raises ValueError unless sigma > 0.
    """
    _check.positive("sigma", sigma)
    return np.exp(-2 * np.pi**2 * sigma**2 * _frequency2(shape))


def airy(shape: tuple[int, int], radius: float) -> np.ndarray:
    """The transfer function of the Airy disc, the image of a point by a perfect lens, [height, width].

    With nu = frequency / cut-off it is 2 / pi (arccos nu - nu sqrt(1 - nu^2)), and 0 from the cut-off on (Goodman,
    eq. 6-31): the overlap of two pupils, and the transform of (2 J_1(v) / v)^2, v = 3.8317 r / radius.

    radius: of the first dark ring in pixels, 0.61 wavelength / numerical aperture; the cut-off is 1.2197 / radius
      cycles a pixel. Raises ValueError unless radius > 0.
    """
    _check.positive("radius", radius)
    nu = np.minimum(np.sqrt(_frequency2(shape)) * radius / _FIRST_ZERO, 1)
    return 2 / np.pi * (np.arccos(nu) - nu * np.sqrt(1 - nu**2))


_FIRST_ZERO = 3.8317059702075125 / np.pi
"""The first zero of J_1 over pi."""


def blur(image: ArrayLike, transfer: ArrayLike) -> Array:
    """The image [..., height, width, channels] through a transfer function [height, width] of a real, even PSF."""
    image, transfer = at_least_float32(image), jnp.asarray(transfer)
    _same_size("transfer", transfer, image)
    spectrum = jnp.fft.fft2(image, axes=(-3, -2)) * transfer[..., None]
    return jnp.fft.ifft2(spectrum, axes=(-3, -2)).real.astype(image.dtype)


def binned(image: ArrayLike, factor: int) -> Array:
    """The mean over squares of factor x factor pixels, as a coarser camera sees it. Both sides must divide by it."""
    image = at_least_float32(image)
    _check.whole("factor", factor)
    *rest, height, width, channels = image.shape
    if height % factor or width % factor:
        raise ValueError(f"factor = {factor}: must divide height and width, {height} x {width}")
    return image.reshape(*rest, height // factor, factor, width // factor, factor, channels).mean((-4, -2))


def photons(
    key: Array, intensity: ArrayLike, *, peak: float, read_noise: float = 0.0, index: ArrayLike | None = None
) -> Array:
    """What a camera records of an intensity [batch, height, width, channels] >= 0, in the unit of the intensity.

    (Poisson(peak intensity) + read_noise Normal) / peak: mean `intensity`, variance intensity / peak + (read_noise /
    peak)^2.

    Args:
      key: sample i draws from fold_in(key, index[i]) alone.
      peak: photons a pixel at intensity 1, > 0.
      read_noise: standard deviation of the camera's own noise, in photons, >= 0.
      index: [batch] int, the samples' numbers; 0, 1, ... by default.
    """
    _check.positive("peak", peak)
    _check.between("read_noise", read_noise, 0, np.inf)
    intensity = at_least_float32(intensity)
    index = jnp.arange(len(intensity)) if index is None else jnp.asarray(index)

    def record(key: Array, intensity: Array) -> Array:
        shot_key, read_key = jax.random.split(key)
        counts = jax.random.poisson(shot_key, peak * jnp.maximum(intensity, 0)).astype(intensity.dtype)
        return (counts + read_noise * jax.random.normal(read_key, intensity.shape, intensity.dtype)) / peak

    return jax.vmap(record)(noise.sample_keys(key, index), intensity)


# ---- coherent light -------------------------------------------------------------------------------------------------


def propagation(shape: tuple[int, int], distance: float, *, wavelength: float, pixel: float = 1.0) -> np.ndarray:
    """The transfer function of free space over `distance`, complex [height, width]: the angular spectrum.

    exp(2 pi i distance (sqrt(1 / wavelength^2 - f^2) - 1 / wavelength)): the phase that a plane wave of transverse
    frequency f is ahead of the one along the axis; exp(-i pi wavelength distance f^2) for small f, which is Fresnel's
    approximation (Goodman, eqs. 3-74 and 4-20). Waves of f > 1 / wavelength do not propagate and are left out.

    Args:
      shape: (height, width) in pixels.
      distance: along the axis, negative for the way back.
      wavelength: in the medium; it, pixel (the side of one) and distance are in one unit.
    """
    _check.finite("distance", distance)
    _check.positive("wavelength", wavelength)
    _check.positive("pixel", pixel)
    f2 = _frequency2(shape) / pixel**2
    axial = np.sqrt(np.maximum(1 / wavelength**2 - f2, 0))
    path = -f2 / (axial + 1 / wavelength)  # axial - 1 / wavelength, without the loss of its digits
    return np.where(f2 * wavelength**2 <= 1, np.exp(2j * np.pi * distance * path), 0)


def propagate(field: ArrayLike, distance: float, *, wavelength: float, pixel: float = 1.0) -> Array:
    """The complex field [..., height, width, channels] after `distance`, see `propagation`.

    Energy is kept and the way back undoes the way there, but for what does not propagate.
    """
    field = jnp.asarray(field)
    transfer = propagation((field.shape[-3], field.shape[-2]), distance, wavelength=wavelength, pixel=pixel)
    factors = jnp.asarray(transfer, jnp.promote_types(field.dtype, jnp.complex64))[..., None]
    return jnp.fft.ifft2(jnp.fft.fft2(field, axes=(-3, -2)) * factors, axes=(-3, -2))


def defocused(phase: ArrayLike, distances: tuple[float, ...], *, wavelength: float, pixel: float = 1.0) -> Array:
    """Intensities |propagate(exp(i phase), distance)|^2, a channel for each distance: [..., height, width, distances].

    phase: of a transparent object in light of intensity 1, [..., height, width, 1] in radians. In focus nothing is
    seen; a pair at +-distance holds what the transport of intensity equation makes of the phase's curvature.

    Raises ValueError unless phase has one channel.
    """
    phase = at_least_float32(phase)
    if phase.ndim < 3 or phase.shape[-1] != 1:
        raise ValueError(f"phase has shape {phase.shape}: must be [..., height, width, 1]")
    field = jnp.exp(1j * phase)
    fields = [propagate(field, distance, wavelength=wavelength, pixel=pixel) for distance in distances]
    return jnp.abs(jnp.concatenate(fields, axis=-1)) ** 2


def _frequency2(shape: tuple[int, int]) -> np.ndarray:
    """Squared distance from frequency 0, in cycles a pixel, in the order of the FFT."""
    rows, columns = (np.fft.fftfreq(n) for n in shape)
    return rows[:, None] ** 2 + columns**2


def _same_size(name: str, transfer: Array, image: Array) -> None:
    if image.ndim < 3 or transfer.shape != image.shape[-3:-1]:
        raise ValueError(
            f"{name} has shape {transfer.shape} for an image of shape {image.shape}: must be [height, width] of an "
            "image [..., height, width, channels]"
        )
