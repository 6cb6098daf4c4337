"""The parts that all networks share, against numpy float64: how they are drawn, what they compute, their gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from diffax.models.layers import (
    Dense,
    Drawn,
    GroupNorm,
    LayerNorm,
    attention,
    conv,
    draw,
    fourier,
    group_norm,
    heads_of,
    resample,
    sinusoid,
    smooth,
)
from diffax.models.network import initialiser
from tests.models import naive
from tests.models.naive import BLUR, MEAN, close, jit, normal

# ---- parameters -----------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = Dense(300, name="first")(x)
        h = Dense(300, name="second")(h)
        h = conv(40, 3, 2, gain=2.0, name="conv")(h)
        h = LayerNorm(name="layer_norm")(GroupNorm(name="group_norm")(h))
        return Dense(5, 0, name="zero")(h)


# std of each kernel: gain over the root of how many numbers go into one output
DEVIATIONS = {"first": 300**-0.5, "second": 300**-0.5, "conv": 2 * (9 * 300) ** -0.5}
X = jnp.zeros((1, 4, 4, 300))


@pytest.mark.parametrize("way", ["in one draw", "by the layers themselves"])
def test_kernels_are_normal_with_gain_over_root_fan_in_and_biases_zero(way):
    key = jax.random.key(0)
    if way == "in one draw":
        params = initialiser(Parts(), X)(key)
    else:
        params = nn.meta.unbox(jax.jit(Parts().init)(key, X))["params"]
    for name, std in DEVIATIONS.items():
        kernel = np.float64(params[name]["kernel"]).ravel()
        assert scipy.stats.kstest(kernel / std, "norm").pvalue > 1e-3, name
        assert kernel.std() == pytest.approx(std, rel=4 / np.sqrt(2 * kernel.size))
        assert not params[name]["bias"].any()
    for name in ("group_norm", "layer_norm"):
        assert (params[name]["scale"] == 1).all() and not params[name]["bias"].any()
    assert not params["zero"]["kernel"].any()
    correlation = np.corrcoef(params["first"]["kernel"].ravel(), params["second"]["kernel"].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(300 * 300)


def test_draw_follows_the_key_under_jit_and_not():
    shapes = {
        "a": Drawn(jax.ShapeDtypeStruct((50, 3), jnp.float32), 2.0, 0.1),
        "b": [Drawn(jax.ShapeDtypeStruct((), jnp.float32), -1.0), Drawn(jnp.zeros((7,), jnp.bfloat16), 0.0, 3.0)],
    }
    params = draw(shapes, jax.random.key(0))
    assert jax.tree.map(lambda p: (p.shape, p.dtype.name), params) == {
        "a": ((50, 3), "float32"),
        "b": [((), "float32"), ((7,), "bfloat16")],
    }
    assert abs(params["a"].mean() - 2) < 4 * 0.1 / np.sqrt(150) and params["b"][0] == -1
    jax.tree.map(np.testing.assert_array_equal, params, draw(shapes, jax.random.key(0)))
    other = draw(shapes, jax.random.key(1))
    assert (params["a"] != other["a"]).all() and params["b"][0] == other["b"][0]
    jitted = jax.jit(lambda key: draw(shapes, key))(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, jitted)


# ---- normalisation --------------------------------------------------------------------------------------------------


def slopes(function, a, by=1e-5):
    """Central differences of a number in every entry of a."""
    out = np.zeros(a.shape)
    for at in np.ndindex(a.shape):
        step = np.zeros(a.shape)
        step[at] = by
        out[at] = (function(a + step) - function(a - step)) / (2 * by)
    return out


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("per_sample", [False, True], ids=["one scale", "a scale per sample"])
def test_group_norm_and_its_gradients_are_those_of_the_definition(silu, per_sample):
    arrays = normal(1, 2, 3, 2, 8) * 2 + 1, *normal(2, 2, 2 if per_sample else 1, 8)
    weights = normal(3, 2, 3, 2, 8)

    def expected(x, scale, shift):
        y = naive.group_norm(x, {"scale": scale[:, None, None], "bias": shift[:, None, None]}, 2, 1e-2)
        return naive.silu(y) if silu else y

    def got(x, scale, shift):
        return group_norm(x, scale, shift, 2, 1e-2, silu)

    close(jit(got)(*map(jnp.float32, arrays)), expected(*arrays), 1e-5)
    gradients = jit(jax.grad(lambda *a: jnp.sum(weights * got(*a)), (0, 1, 2)))(*map(jnp.float32, arrays))
    for i, gradient in enumerate(gradients):
        along = slopes(lambda a, i=i: np.sum(weights * expected(*arrays[:i], a, *arrays[i + 1 :])), arrays[i])
        close(gradient, along, 1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (6, 1), (8, 2), (20, 5), (36, 9), (66, 2), (256, 32)])
def test_groups_are_of_four_channels_at_least_and_32_at_most(channels, groups):
    x = normal(0, 2, 3, 3, channels)
    params = naive.of_layer(GroupNorm(), x)
    expected = naive.group_norm(x, naive.float64(params["params"]), groups)
    close(jit(GroupNorm().apply)(params, jnp.float32(x)), expected, 1e-5)


def test_modulation_scales_and_shifts_before_the_silu():
    x, by, add = normal(0, 2, 4, 4, 8), normal(1, 2, 8), normal(2, 2, 8)
    layer = GroupNorm(1e-3, 4, silu=True)
    params = naive.of_layer(layer, x)
    y = naive.group_norm(x, naive.float64(params["params"]), 4, 1e-3)
    expected = naive.silu(y * (1 + by[:, None, None]) + add[:, None, None])
    close(jit(layer.apply)(params, jnp.float32(x), (jnp.float32(by), jnp.float32(add))), expected, 1e-5)


def test_a_large_mean_does_not_blur_the_variance():
    """The mean square less the squared mean would have lost it: 10^6 in float32 is exact to 0.06."""
    x = np.float32(1000 + normal(0, 1, 64, 64, 4))
    ones, zeros = jnp.ones((1, 4)), jnp.zeros((1, 4))
    expected = naive.group_norm(np.float64(x), {"scale": 1.0, "bias": 0.0}, 1)
    np.testing.assert_allclose(group_norm(x, ones, zeros, 1, 1e-5, False), expected, atol=1e-3)


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_is_the_definition(affine):
    x = normal(0, 2, 5, 12) * 3 + 2
    layer = LayerNorm(1e-2, affine)
    params = naive.of_layer(layer, x)
    assert ("params" in params) == affine
    expected = naive.layer_norm(x, naive.float64(params["params"]) if affine else None, 1e-2)
    close(jit(layer.apply)(params, jnp.float32(x)), expected, 1e-5)


def test_statistics_of_bfloat16_are_float32():
    """Sums of thousands of bfloat16 in bfloat16 stop growing at 256."""
    x = jnp.bfloat16(normal(0, 1, 32, 32, 8) + 3)
    half = dict(rtol=2**-8, atol=1e-4)  # rounding of the result alone
    exact = np.float64(x)
    got = GroupNorm(groups=1, dtype=jnp.bfloat16).apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), naive.group_norm(exact, {"scale": 1.0, "bias": 0.0}, 1), **half)
    x, exact = x.reshape(2, 4096), exact.reshape(2, 4096)
    got = LayerNorm(affine=False, dtype=jnp.bfloat16).apply({}, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), naive.layer_norm(exact), **half)
    q, k = (jnp.bfloat16(normal(s, 1, n, 1, 8)) for s, n in ((1, 4), (2, 4096)))
    got = attention(q, k, jnp.ones_like(k))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), 1, rtol=2**-7)  # weights sum to one


# ---- attention ------------------------------------------------------------------------------------------------------


def test_attention_is_the_definition():
    q, k, v = normal(0, 2, 5, 12), *normal(1, 2, 2, 7, 12)
    heads = (jnp.float32(a).reshape(2, -1, 3, 4) for a in (q, k, v))
    close(attention(*heads).reshape(2, 5, 12), naive.attention(q, k, v, 3), 1e-5)


def test_heads_divide_the_channels_and_are_large_enough():
    for channels, size in itertools.product(range(1, 200), (1, 4, 32, 64)):
        heads = heads_of(channels, size)
        assert channels % heads == 0 and (heads == 1 or channels // heads >= size)
    assert [heads_of(c, 64) for c in (64, 192, 768)] == [1, 3, 12]


# ---- embeddings of the noise level ----------------------------------------------------------------------------------

LEVELS = np.array([-1.3, 0.0, 0.25, 2.0])


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("endpoint", [False, True])
def test_sinusoids_are_cosines_and_sines_at_falling_rates(endpoint, swap):
    got = sinusoid(jnp.float32(LEVELS), 12, longest=100.0, scale=3.0, endpoint=endpoint, swap=swap)
    np.testing.assert_allclose(got, naive.sinusoid(3 * LEVELS, 12, 100.0, endpoint, swap), atol=1e-5)


def test_the_slowest_sinusoid_is_the_longest_wavelength_at_an_endpoint():
    wave = lambda endpoint: sinusoid(jnp.float32([2 * np.pi * 50]), 8, longest=100.0, endpoint=endpoint)[0, 3]
    np.testing.assert_allclose(wave(True), -1, atol=1e-5)  # half of it
    np.testing.assert_allclose(wave(False), np.cos(np.pi * 100**0.25), atol=1e-5)


def test_fourier_features_turn_at_the_rates_given():
    rates = normal(0, 6) * 4
    angle = 2 * np.pi * np.outer(LEVELS, rates)
    got = fourier(jnp.float32(LEVELS), 12, rates=rates)
    np.testing.assert_allclose(got, np.concatenate([np.sin(angle), np.cos(angle)], -1), atol=2e-5)


def test_fourier_features_have_the_rates_of_a_normal_distribution_of_deviation_16():
    np.testing.assert_allclose(fourier(jnp.float32(LEVELS), 32), naive.fourier(LEVELS, 32), atol=5e-4)


def test_smooth_embeddings_are_sines_and_cosines_from_half_a_turn_to_32():
    np.testing.assert_allclose(smooth(jnp.float32(LEVELS), 10), naive.smooth(LEVELS, 10), atol=2e-5)


# ---- resampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(8,), (6, 4)], ids=["sound", "image"])
@pytest.mark.parametrize("blur", [False, True], ids=["mean", "blur"])
@pytest.mark.parametrize(("how", "border"), [("down", False), ("down", True), ("up", False)])
def test_resampling_is_a_convolution(how, blur, sides, border):
    x = normal(0, 2, *(n + 2 * border for n in sides), 3)
    expected = naive.resample(x, how, BLUR if blur else MEAN, border)
    assert expected.shape[1:-1] == tuple(n // 2 if how == "down" else 2 * n for n in sides)
    close(jit(resample, static_argnums=(1, 2, 3))(jnp.float32(x), how, blur, border), expected, 1e-6)


def test_without_a_direction_nothing_is_resampled():
    x = jnp.float32(normal(0, 1, 3, 5, 2))
    assert resample(x, None, blur=True) is x
