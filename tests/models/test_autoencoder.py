"""The autoencoder: both halves against numpy float64, latents' scale and shift, draws from the posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import autoencoder
from tests.models import naive
from tests.models.naive import close, jit, normal

SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, latent_channels=3)
NETWORK = autoencoder((8, 12, 2), **SMALL, scale=0.5, shift=0.25)
X = jnp.float32(normal(0, 2, 8, 12, 2))
Z = jnp.float32(normal(1, 2, 4, 6, 3))


@pytest.fixture(scope="module")
def params():
    return {half: naive.small(p, "conv_in") for half, p in naive.random(NETWORK.init).items()}


@pytest.fixture(scope="module")
def moments(params):
    return [np.float64(a) for a in jit(NETWORK.posterior)(params, X)]


def middle(h, p):
    h = naive.res_block(h, None, p["middle_block0"], epsilon=1e-6)
    h = naive.self_attention(h, p["middle_attention"], 1, epsilon=1e-6)
    return naive.res_block(h, None, p["middle_block1"], epsilon=1e-6)


def out(h, p):
    return naive.conv(naive.silu(naive.group_norm(h, p["norm_out"], epsilon=1e-6)), p["conv_out"])


def test_the_encoder_is_its_formula(params, moments):
    p = naive.float64(params["encoder"])
    h = naive.res_block(naive.conv(np.float64(X), p["conv_in"]), None, p["down0_block0"], epsilon=1e-6)
    h = naive.conv(h, p["down1_resample"], stride=2, padding=(0, 1))
    h = middle(naive.res_block(h, None, p["down1_block0"], epsilon=1e-6), p)
    h = naive.dense(out(h, p), p["quantise"])
    assert moments[0].shape == (2, 4, 6, 3)
    close(moments[0], h[..., :3], 1e-5)
    close(moments[1], h[..., 3:], 1e-5)


def test_the_decoder_is_its_formula_of_latents_scaled_and_shifted_back(params):
    p = naive.float64(params["decoder"])
    h = middle(naive.conv(naive.dense(np.float64(Z) / 0.5 + 0.25, p["quantise"]), p["conv_in"]), p)
    for name in ("up1_block0", "up1_block1"):
        h = naive.res_block(h, None, p[name], epsilon=1e-6)
    h = naive.conv(naive.resample(h, "up"), p["up1_resample"])
    for name in ("up0_block0", "up0_block1"):
        h = naive.res_block(h, None, p[name], epsilon=1e-6)
    close(jit(NETWORK.decode)(params, Z), out(h, p), 1e-5)


def test_latents_are_the_scaled_mean_and_draws_have_the_posteriors_mean_and_variance(params, moments):
    mean, log_variance = moments
    close(jit(NETWORK.encode)(params, X), 0.5 * (mean - 0.25), 1e-5)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.float64(jit(lambda p: jax.vmap(lambda key: NETWORK.encode(p, X, key=key))(keys))(params))
    z = (draws / 0.5 + 0.25 - mean) / np.exp(log_variance / 2)  # standard normal, each entry on its own
    assert np.ptp(log_variance) > 1
    assert np.abs(z.mean(0)).max() < 5 / np.sqrt(4000)
    assert np.abs(z.var(0) - 1).max() < 5 * np.sqrt(2 / 4000)
    others = np.corrcoef(z.reshape(4000, -1)[:, :40].T) - np.eye(40)
    assert np.abs(others).max() < 5 / np.sqrt(4000)


def test_the_variance_is_bounded(params):
    """From e^-30 to e^20, whatever the encoder says."""
    bias = np.float32([0, 0, 0, 1e3, -1e3, 0])
    told = params | {"encoder": params["encoder"] | {"quantise": params["encoder"]["quantise"] | {"bias": bias}}}
    _, log_variance = jit(NETWORK.posterior)(told, X)
    assert (log_variance[..., 0] == 20).all() and (log_variance[..., 1] == -30).all()


def test_the_two_dense_layers_of_quantisation_may_be_left_out():
    with_, without = (
        jax.eval_shape(autoencoder((8, 8, 2), **SMALL, quantise=q).init, jax.random.key(0)) for q in (True, False)
    )
    for half in ("encoder", "decoder"):
        assert set(with_[half]) - set(without[half]) == {"quantise"} and set(without[half]) < set(with_[half])


def test_it_starts_by_its_own_draws_and_every_parameter_gets_a_finite_gradient():
    network = autoencoder((4, 4, 2), **SMALL)
    params, x = network.init(jax.random.key(0)), X[:, :4, :4]
    other = network.init(jax.random.key(1))
    for half in ("encoder", "decoder"):
        assert (params[half]["conv_in"]["kernel"] != other[half]["conv_in"]["kernel"]).all()

    def loss(p):
        mean, log_variance = network.posterior(p, x)
        latents = network.encode(p, x, key=jax.random.key(2))
        divergence = jnp.mean(mean**2 + jnp.exp(log_variance) - log_variance)
        return jnp.mean((network.decode(p, latents) - x) ** 2) + 1e-2 * divergence

    grads = jit(jax.grad(loss))(naive.random(network.init))
    for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-7, path


def test_bfloat16_computes_alike_with_float32_parameters(params):
    half = autoencoder((8, 12, 2), **SMALL, scale=0.5, shift=0.25, dtype=jnp.bfloat16)
    for name, a in (("encode", X), ("decode", Z)):
        full, rounded = (jit(getattr(network, name))(params, a) for network in (NETWORK, half))
        assert rounded.dtype == jnp.float32
        assert 0 < np.abs(full - rounded).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((64, 1), dict(), "shape = (64, 1): must be of 3 positive integers"),
        ((64, 60, 1), dict(), "width 60 must be multiples of 8"),
        ((64, 64, 1), dict(multipliers=()), "multipliers = ()"),
        ((64, 64, 1), dict(channels=0), "channels = 0"),
        ((64, 64, 1), dict(blocks=0), "blocks = 0"),
        ((64, 64, 1), dict(latent_channels=0), "latent_channels = 0"),
        ((64, 64, 1), dict(scale=0.0), "scale = 0.0"),
        ((64, 64, 1), dict(scale=float("nan")), "scale = nan"),
    ],
)
def test_bad_sizes_are_refused_at_construction(shape, arguments, words):
    with pytest.raises(ValueError) as error:
        autoencoder(shape, **arguments)
    assert words in str(error.value)
