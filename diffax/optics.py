"""Microscopes as pure functions: blur, defocus and noise, the forward models of inverse problems in microscopy.

Light that passes a linear, shift-invariant instrument is multiplied, frequency by frequency, by its transfer function.
Fluorescence is incoherent: intensities are blurred by a point spread function of unit sum, whose transform is 1 at
frequency 0. A transparent object is seen by coherent light: the field exp(i phase) propagates, and only its intensity
is recorded, in and out of focus (Goodman, Introduction to Fourier Optics, sections 3.10 and 6.3).

Images are [..., height, width, channels] and periodic: pad them (`numpy.pad(mode="symmetric")`) where the other side
must not shine in. Lengths are in pixels, or in the unit of `pixel`. Transfer functions are constants, found in float64.
"""

from typing import Any

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
    sigma = _length("sigma", sigma)
    return np.exp(-2 * np.pi**2 * sigma**2 * _frequency2(shape))


def airy(shape: tuple[int, int], radius: float) -> np.ndarray:
    """The transfer function of the Airy disc, the image of a point by a perfect lens, [height, width].

    With nu = frequency / cut-off it is 2 / pi (arccos nu - nu sqrt(1 - nu^2)), and 0 from the cut-off on (Goodman,
    eq. 6-31): the overlap of two pupils, and the transform of (2 J_1(v) / v)^2, v = 3.8317 r / radius.

    radius: of the first dark ring in pixels, 0.61 wavelength / numerical aperture; the cut-off is 1.2197 / radius
      cycles a pixel. Raises ValueError unless radius > 0.
    """
    radius = _length("radius", radius)
    nu = np.minimum(np.sqrt(_frequency2(shape)) * radius / _FIRST_ZERO, 1)
    return 2 / np.pi * (np.arccos(nu) - nu * np.sqrt(1 - nu**2))


_FIRST_ZERO = 3.8317059702075125 / np.pi
"""The first zero of J_1 over pi."""


def blur(image: ArrayLike, transfer: ArrayLike) -> Array:
    """The image [..., height, width, channels] through a transfer function [height, width] of a real, even PSF.

    Raises ValueError for other shapes, and for numbers that are not real.
    """
    image = _image("image", image)
    _check.real("transfer", transfer, "be [height, width] real numbers")
    _check.numbers("transfer", transfer)
    transfer = at_least_float32(transfer).astype(image.dtype)
    _same_size("transfer", transfer, image)
    spectrum = jnp.fft.fft2(image, axes=(-3, -2))
    spectrum = spectrum * transfer[..., None].astype(spectrum.dtype)
    return jnp.fft.ifft2(spectrum, axes=(-3, -2)).real.astype(image.dtype)


def binned(image: ArrayLike, factor: int) -> Array:
    """The mean over squares of factor x factor pixels, as a coarser camera sees it. Both sides must divide by it.

    Raises ValueError unless they do, for an image [..., height, width, channels] of real numbers.
    """
    image = _image("image", image)
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

    Raises: ValueError for arguments that are not so, or more than 1e9 photons a pixel: they are counted in 32 bits.
    """
    _check.one_positive("peak", peak)
    _check.between("read_noise", read_noise, 0, 1e9)
    _check.one("read_noise", read_noise)
    intensity = _image("intensity", intensity, rank=4)
    if _check.concrete(intensity, peak):
        most = float(np.asarray(intensity).max())
        if most * float(peak) > 1e9:
            raise ValueError(f"peak = {peak}: must be at most {1e9 / most:.3g} for an intensity of up to {most:.3g}")
    index = _check.index(index, len(intensity))

    def record(key: Array, intensity: Array) -> Array:
        shot_key, read_key = jax.random.split(key)
        counts = jax.random.poisson(shot_key, peak * jnp.maximum(intensity, 0), dtype=jnp.int32).astype(intensity.dtype)
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

    Raises: ValueError unless the lengths are finite numbers with values (not traced), wavelength and pixel positive.
    """
    _check.one("distance", _constant("distance", distance))
    distance = float(distance)
    wavelength, pixel = _length("wavelength", wavelength), _length("pixel", pixel)
    f2 = _frequency2(shape) / pixel**2
    axial = np.sqrt(np.maximum(1 / wavelength**2 - f2, 0))
    path = -f2 / (axial + 1 / wavelength)  # axial - 1 / wavelength, without the loss of its digits
    return np.where(f2 * wavelength**2 <= 1, np.exp(2j * np.pi * distance * path), 0)


def propagate(field: ArrayLike, distance: float, *, wavelength: float, pixel: float = 1.0) -> Array:
    """The complex field [..., height, width, channels] after `distance`, see `propagation`.

    Energy is kept and the way back undoes the way there, but for what does not propagate.
    """
    field = _image("field", field, complex_too=True)
    transfer = propagation((field.shape[-3], field.shape[-2]), distance, wavelength=wavelength, pixel=pixel)
    spectrum = jnp.fft.fft2(field, axes=(-3, -2))
    return jnp.fft.ifft2(spectrum * jnp.asarray(transfer, spectrum.dtype)[..., None], axes=(-3, -2))


def defocused(phase: ArrayLike, distances: tuple[float, ...], *, wavelength: float, pixel: float = 1.0) -> Array:
    """Intensities |propagate(exp(i phase), distance)|^2, a channel for each distance: [..., height, width, distances].

    phase: of a transparent object in light of intensity 1, [..., height, width, 1] in radians. In focus nothing is
    seen; a pair at +-distance holds what the transport of intensity equation makes of the phase's curvature.

    Raises ValueError unless phase has one channel, and distances is a sequence of one or more finite numbers.
    """
    phase = _image("phase", phase)
    at = _constant("distances", distances)
    if at.ndim != 1:
        raise ValueError(f"distances = {_check.shown(distances)}: must be a sequence of numbers, one or more")
    if phase.shape[-1] != 1:
        raise ValueError(f"phase has shape {phase.shape}: must be [..., height, width, 1]")
    field = jax.lax.complex(jnp.cos(phase), jnp.sin(phase))
    fields = [propagate(field, distance, wavelength=wavelength, pixel=pixel) for distance in at]
    return jnp.abs(jnp.concatenate(fields, axis=-1)) ** 2


def _frequency2(shape: tuple[int, int]) -> np.ndarray:
    """Squared distance from frequency 0, in cycles a pixel, in the order of the FFT."""
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise ValueError(f"shape = {_check.shown(shape)}: must be (height, width)")
    for name, length in zip(("shape[0]", "shape[1]"), shape, strict=True):
        _check.whole(name, length, 1, 100_000)
    rows, columns = (np.fft.fftfreq(n) for n in shape)
    return rows[:, None] ** 2 + columns**2


def _length(name: str, value: Any) -> float:
    """Raises ValueError unless `value` is one positive number that is not traced."""
    _check.one_positive(name, value)
    return float(_constant(name, value))


def _constant(name: str, value: Any) -> np.ndarray:
    """In float64. Raises ValueError unless it holds finite numbers, not traced: transfer functions are constants."""
    _check.finite(name, value)
    if not _check.concrete(value):
        raise ValueError(f"{name} is traced by JAX: must be a constant, such as a static argument of jax.jit")
    return np.asarray(value, np.float64)


def _image(name: str, value: ArrayLike, rank: int | None = None, complex_too: bool = False) -> Array:
    """`value` in float32 or better. Raises ValueError unless it is [..., height, width, channels], of that rank, and
    finite where it has values."""
    axes = "[..., height, width, channels]" if rank is None else "[batch, height, width, channels]"
    if not isinstance(value, Array | np.ndarray):
        _check.real(name, value, f"be {axes} numbers")
        value = np.asarray(value)
    kinds = [jnp.floating, jnp.integer] + [jnp.complexfloating] * complex_too
    if not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
        raise ValueError(f"{name} is of {value.dtype}: must be {'' if complex_too else 'real '}numbers")
    if (value.ndim < 3 if rank is None else value.ndim != rank) or not value.size:
        raise ValueError(f"{name} has shape {value.shape}: must be {axes}, not empty")
    _check.numbers(name, value)
    return at_least_float32(value)


def _same_size(name: str, transfer: Array, image: Array) -> None:
    if image.ndim < 3 or transfer.shape != image.shape[-3:-1]:
        raise ValueError(
            f"{name} has shape {transfer.shape} for an image of shape {image.shape}: must be [height, width] of an "
            "image [..., height, width, channels]"
        )
