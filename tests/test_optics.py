"""Forward models of a microscope, against numpy in float64, Bessel functions and plane waves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from diffax import optics

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.uniform(size=(2, 48, 40, 1))
FLAT = np.ones((4, 4, 1))
LIGHT = dict(wavelength=0.5, pixel=0.4)  # all frequencies of these pixels propagate: 0.4 > 0.5 / sqrt(2)


def psf_of(transfer):
    return np.fft.ifft2(transfer).real


@pytest.mark.parametrize("sigma", [1.6, 2.5])  # at 1 the samples of the two differ by aliasing, 0.7 %
def test_a_gaussian_blurs_as_a_sum_over_neighbours_does(sigma):
    expected = ndimage.gaussian_filter(IMAGE, (0, sigma, sigma, 0), mode="wrap", truncate=8)
    np.testing.assert_allclose(optics.blur(IMAGE, optics.gaussian((48, 40), sigma)), expected, atol=1e-5)


def test_the_airy_disc_is_that_of_bessel_functions():
    """The transform of the closed form in space, on a lattice wide and fine enough for both; its ring is dark."""
    n, radius = 512, 6.0
    at = np.fft.fftfreq(n, 1 / n)
    v = special.jn_zeros(1, 1)[0] / radius * np.hypot(at[:, None], at) + 1e-12
    disc = (2 * special.j1(v) / v) ** 2
    got = psf_of(optics.airy((n, n), radius))
    np.testing.assert_allclose(got / got[0, 0], disc, atol=1e-4)
    assert got[0, 6] < 1e-4 * got[0, 0] < got[0, 8]


@pytest.mark.parametrize("transfer", [optics.gaussian((48, 40), 1.7), optics.airy((48, 40), 3.0)])
def test_blurring_keeps_the_light_and_never_makes_it_negative(transfer):
    assert psf_of(transfer).sum() == pytest.approx(1, abs=1e-12) and psf_of(transfer).min() > -1e-4
    blurred = np.asarray(optics.blur(IMAGE, transfer), np.float64)
    np.testing.assert_allclose(blurred.sum((1, 2)), IMAGE.sum((1, 2)), rtol=1e-6)
    spectrum = np.fft.fft2(IMAGE, axes=(1, 2)) * transfer[..., None]
    np.testing.assert_allclose((blurred**2).sum(), (np.abs(spectrum) ** 2).sum() / (48 * 40), rtol=1e-6)  # Parseval


def test_bins_are_means_of_squares():
    expected = [[IMAGE[1, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 0].mean() for j in range(10)] for i in range(12)]
    np.testing.assert_allclose(optics.binned(IMAGE, 4)[1, ..., 0], expected, rtol=1e-6)


def test_photons_have_the_mean_and_the_variance_of_a_camera():
    intensity = np.broadcast_to(np.float32([0.05, 0.4, 1.0])[:, None, None, None], (3, 200, 200, 1))
    counted = np.asarray(optics.photons(jax.random.key(0), intensity, peak=30.0, read_noise=2.0), np.float64)
    wanted = np.float64([0.05, 0.4, 1.0])
    np.testing.assert_allclose(counted.mean((1, 2, 3)), wanted, atol=4 * np.sqrt((1 / 30 + 4 / 900) / 40_000))
    np.testing.assert_allclose(counted.var((1, 2, 3)), wanted / 30 + (2 / 30) ** 2, rtol=0.04)
    whole = optics.photons(jax.random.key(0), intensity[1:], peak=30.0, read_noise=2.0, index=[1, 2])
    np.testing.assert_array_equal(whole, np.float32(counted[1:]))
    pure = 30 * np.asarray(optics.photons(jax.random.key(1), intensity, peak=30.0))
    np.testing.assert_allclose(pure, np.round(pure), atol=1e-4)


def test_a_plane_wave_gains_the_phase_of_its_angle():
    """A wave of frequency f goes sqrt(1/wavelength^2 - f^2) wavelengths on, less those of the wave on the axis."""
    row, column = np.arange(48)[:, None], np.arange(40)
    f = np.array([5 / 48, -7 / 40]) / 0.4
    wave = np.exp(2j * np.pi * (5 * row / 48 - 7 * column / 40))[..., None]
    got = np.asarray(optics.propagate(wave, 3.0, **LIGHT))
    phase = 2 * np.pi * 3.0 * (np.sqrt(1 / 0.5**2 - (f**2).sum()) - 1 / 0.5)
    np.testing.assert_allclose(got, wave * np.exp(1j * phase), atol=2e-5)


def test_the_way_back_undoes_the_way_there_and_energy_is_kept():
    field = np.exp(1j * IMAGE) * (1 + IMAGE[::-1])
    there = optics.propagate(field, 4.0, **LIGHT)
    np.testing.assert_allclose((np.abs(there) ** 2).sum(), (np.abs(field) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(optics.propagate(there, -4.0, **LIGHT), field, atol=2e-5)
    twice = optics.propagate(optics.propagate(field, 1.5, **LIGHT), 2.5, **LIGHT)
    np.testing.assert_allclose(twice, there, atol=2e-5)


def test_waves_finer_than_the_light_are_left_out():
    """At a tenth of a wavelength a pixel, a chequerboard is evanescent; its mean is not."""
    board = np.indices((16, 16)).sum(0)[..., None] % 2 - 0.5 + 2.0
    np.testing.assert_allclose(optics.propagate(board, 0.3, wavelength=1.0, pixel=0.1), 2.0, atol=1e-5)


def test_defocus_is_the_transport_of_intensity():
    """dI/dz = -(wavelength / 2 pi) laplace(phase) at intensity 1 (Teague 1983), for small phase and distance."""
    size, z = 64, 0.5
    row, column = np.arange(size)[:, None], np.arange(size)
    phase = 0.1 * np.sin(2 * np.pi * row / size) * np.cos(2 * np.pi * 2 * column / size)
    laplace = -((2 * np.pi / size) ** 2) * (1 + 4) * phase / 0.4**2
    stack = np.asarray(optics.defocused(phase[..., None], (z, -z, 0.0), **LIGHT), np.float64)
    assert stack.shape == (size, size, 3)
    slope = (stack[..., 0] - stack[..., 1]) / (2 * z)
    np.testing.assert_allclose(slope, -0.5 / (2 * np.pi) * laplace, atol=0.01 * np.abs(slope).max())
    np.testing.assert_allclose(stack[..., 2], 1, atol=1e-5)  # in focus nothing is seen
    np.testing.assert_allclose(stack.mean((0, 1)), 1, rtol=1e-5)


def test_defocus_is_that_of_numpy_in_float64():
    phase = 2 * IMAGE
    f = np.hypot(np.fft.fftfreq(48, 0.4)[:, None], np.fft.fftfreq(40, 0.4))
    path = np.sqrt(1 / 0.5**2 - f**2) - 1 / 0.5
    spectrum = np.fft.fft2(np.exp(1j * phase[..., 0])) * np.exp(2j * np.pi * 2.0 * path)
    got = jax.jit(lambda p: optics.defocused(p, (2.0,), **LIGHT))(jnp.float32(phase))
    np.testing.assert_allclose(got[..., 0], np.abs(np.fft.ifft2(spectrum)) ** 2, atol=2e-5)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_photons_are_counted_with_keys_of_any_implementation(implementation):
    key, flat = jax.random.key(0, impl=implementation), np.ones((3, 4, 4, 1))
    whole = optics.photons(key, flat, peak=30.0, read_noise=1.0)
    np.testing.assert_array_equal(optics.photons(key, flat[:2], peak=30.0, read_noise=1.0, index=[1, 2]), whole[1:])
    assert not (whole[0] == whole[1]).any()


def test_with_x64_and_strict_promotion_images_keep_their_dtype():
    image = np.float32(IMAGE)
    for wide, promotion in ((True, "standard"), (False, "strict")):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
            for found in (
                optics.blur(image, optics.gaussian((48, 40), 1.0)),
                optics.binned(image, 2),
                optics.photons(jax.random.key(0), image, peak=10.0, read_noise=1.0),
                optics.defocused(image, (1.0,), **LIGHT),
                jnp.abs(optics.propagate(image, 1.0, **LIGHT)),
            ):
                assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optics.gaussian((4, 4), 0.0), "sigma = 0.0: must be positive"),
        (lambda: optics.airy((4, 4), -1.0), "radius = -1.0: must be positive"),
        (lambda: optics.blur(IMAGE, np.ones((4, 4))), "transfer has shape (4, 4) for an image of shape (2, 48, 40, 1)"),
        (lambda: optics.binned(IMAGE, 5), "factor = 5: must divide height and width, 48 x 40"),
        (lambda: optics.photons(jax.random.key(0), IMAGE, peak=0.0), "peak = 0.0: must be positive"),
        (lambda: optics.photons(jax.random.key(0), IMAGE, peak=1.0, read_noise=-1.0), "read_noise = -1.0: must lie in"),
        (lambda: optics.propagation((4, 4), 1.0, wavelength=0.0), "wavelength = 0.0: must be positive"),
        (lambda: optics.propagation((4, 4), np.nan, wavelength=1.0), "distance = nan: must be finite"),
        (lambda: optics.defocused(np.ones((4, 4, 2)), (1.0,), wavelength=1.0), "phase has shape (4, 4, 2): must be"),
        (lambda: optics.defocused(np.ones((4, 1)), (1.0,), wavelength=1.0), "phase has shape (4, 1): must be [...,"),
        (lambda: optics.defocused(FLAT, (), wavelength=1.0), "distances = (): must be finite"),
        (lambda: optics.defocused(FLAT, 1.0, wavelength=1.0), "distances = 1.0: must be a sequence"),
        (lambda: optics.defocused(FLAT, None, wavelength=1.0), "distances = None: must be finite"),
        (lambda: optics.defocused(FLAT, (np.nan,), wavelength=1.0), "must be finite"),
        (lambda: optics.defocused(FLAT, ("1",), wavelength=1.0), "distances = ('1',): must be finite"),
        (lambda: optics.gaussian(4, 1.0), "shape = 4: must be (height, width)"),
        (lambda: optics.gaussian((4,), 1.0), "shape = (4,): must be (height, width)"),
        (lambda: optics.gaussian((4, 0), 1.0), "shape[1] = 0: must be an integer from 1"),
        (lambda: optics.gaussian((4, 4.0), 1.0), "shape[1] = 4.0: must be an integer from 1"),
        (lambda: optics.gaussian((4, 4), "1"), "sigma = '1': must be"),
        (lambda: optics.gaussian((4, 4), np.ones(2)), "sigma has shape (2,): must be one number"),
        (lambda: jax.jit(lambda s: optics.gaussian((4, 4), s))(1.0), "sigma is traced by JAX: must be a constant"),
        (lambda: optics.airy((4, 4), None), "radius = None: must be"),
        (lambda: optics.blur(np.ones((4, 4)), np.ones((4, 4))), "image has shape (4, 4): must be [..., height, width"),
        (lambda: optics.blur("a", np.ones((4, 4))), "image = 'a': must be [..., height, width, channels] numbers"),
        (lambda: optics.blur(FLAT + 1j, np.ones((4, 4))), "image is of complex128: must be real numbers"),
        (lambda: optics.blur(FLAT, np.ones((4, 4)) + 1j), "must be [height, width] real numbers"),
        (lambda: optics.blur(FLAT, None), "transfer = None: must be [height, width] real numbers"),
        (lambda: optics.binned(np.ones(4), 2), "image has shape (4,): must be [..., height, width, channels]"),
        (lambda: optics.binned(FLAT, "2"), "factor = '2': must be an integer"),
        (lambda: optics.binned(FLAT[:0], 2), "image has shape (0, 4, 1): must be [..., height, width, channels], not"),
        (lambda: optics.photons(None, IMAGE, peak=1.0), "key = None: must be a JAX key"),
        (lambda: optics.photons(jax.random.key(0), FLAT, peak=1.0), "intensity has shape (4, 4, 1): must be [batch,"),
        (lambda: optics.photons(jax.random.key(0), np.nan * IMAGE, peak=1.0), "values are not finite"),
        (lambda: optics.photons(jax.random.key(0), IMAGE, peak=1e12), "peak = 1000000000000.0: must be at most 1e+09"),
        (lambda: optics.photons(jax.random.key(0), IMAGE, peak=1.0, index=[0]), "index has shape (1,): must be [ba"),
        (lambda: optics.photons(jax.random.key(0), IMAGE, peak=1.0, read_noise=None), "read_noise = None: must lie in"),
        (lambda: optics.propagate(np.ones(4), 1.0, wavelength=1.0), "field has shape (4,): must be [..., height,"),
        (lambda: optics.propagate(FLAT, "1", wavelength=1.0), "distance = '1': must be finite"),
        (lambda: optics.propagate(FLAT, (1.0, 2.0), wavelength=1.0), "distance has shape (2,): must be one number"),
        (lambda: optics.propagate(FLAT, 1.0, wavelength=1.0, pixel=np.ones(2)), "pixel has shape (2,)"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
