"""A Linen and an NNX module, seen from outside, are the same two functions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import diffax as dx
from diffax.models import from_linen, from_nnx
from diffax.models.layers import Dense


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, c_noise, cond):
        h = jnp.concatenate([x, c_noise[:, None]], axis=-1)
        return self.layers[1](self.dropout(jax.nn.silu(self.layers[0](h))))


NETWORK = from_nnx(Mlp)
X, LEVEL = jnp.float32(np.random.default_rng(0).normal(size=(4, 2))), jnp.float32([0, 1, 2, 3])


def test_parameters_are_a_plain_dict_and_the_output_is_the_modules():
    params = NETWORK.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {
        "layers": {"0": {"kernel": (3, 16), "bias": (16,)}, "1": {"kernel": (16, 2), "bias": (2,)}}
    }
    h = np.concatenate([X, LEVEL[:, None]], -1).astype(np.float64)
    first, second = (jax.tree.map(np.float64, params["layers"][i]) for i in "01")
    h = h @ first["kernel"] + first["bias"]
    expected = (h / (1 + np.exp(-h))) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(NETWORK.apply(params, X, LEVEL, None), expected, atol=1e-5)


def test_init_follows_the_key():
    one, same, other = (NETWORK.init(jax.random.key(s))["layers"]["0"]["kernel"] for s in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


def test_dropout_is_on_with_a_key_and_off_without():
    params = NETWORK.init(jax.random.key(0))
    plain = NETWORK.apply(params, X, LEVEL, None)
    one, same, two = (NETWORK.apply(params, X, LEVEL, None, key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != two).any() and (one != plain).any()
    np.testing.assert_array_equal(plain, NETWORK.apply(params, X, LEVEL, None))


def test_dropout_trains_under_jit():
    params = NETWORK.init(jax.random.key(0))
    grad = jax.jit(jax.grad(lambda p, k: jnp.sum(NETWORK.apply(p, X, LEVEL, None, key=k) ** 2)))
    one, two = (grad(params, jax.random.key(s))["layers"]["0"]["kernel"] for s in (0, 1))
    assert np.isfinite(one).all() and (one != two).any()


def test_it_trains_by_the_loss_and_samples():
    x0 = jnp.float32([[1.0, -1.0]] * 64)  # one point: the denoiser should learn to say so
    params = NETWORK.init(jax.random.key(0))

    @jax.jit
    def descend(params, key):
        loss, grads = jax.value_and_grad(lambda p: dx.losses.denoising(NETWORK.apply, p, key, x0)[0])(params)
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, grads), loss

    losses = []
    for i in range(300):
        params, loss = descend(params, jax.random.key(i))
        losses.append(float(loss))
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    denoise = dx.denoiser(NETWORK.apply, params, dx.preconditioning.edm())
    x = 10 * jax.random.normal(jax.random.key(1), (64, 2))
    samples = dx.sample(denoise, x, dx.schedules.sigmas(dx.schedules.karras(0.02, 10), 10))
    np.testing.assert_allclose(samples.mean(0), [1, -1], atol=0.3)


class Linen(nn.Module):
    """With a layer of Flax's own, and one of diffax's."""

    @nn.compact
    def __call__(self, x, c_noise, cond, *, train=False):
        h = nn.Dense(400, name="theirs")(x) * cond + c_noise[:, None]
        return Dense(2, name="ours")(nn.Dropout(0.5, deterministic=not train)(h))


def test_a_linen_module_of_any_layers_is_the_same_two_functions():
    network, told = from_linen(Linen(), (3,), jnp.ones((1, 1))), jnp.full((4, 1), 2.0)
    params = network.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {
        "theirs": {"kernel": (3, 400), "bias": (400,)},
        "ours": {"kernel": (400, 2), "bias": (2,)},
    }
    for layer, fan_in in (("theirs", 3), ("ours", 400)):  # each as its own initialiser says
        np.testing.assert_allclose(params[layer]["kernel"].std(), fan_in**-0.5, rtol=0.1)
    x = jnp.float32(np.random.default_rng(0).normal(size=(4, 3)))
    p = jax.tree.map(np.float64, params)
    expected = (x @ p["theirs"]["kernel"] * 2 + np.asarray(LEVEL)[:, None]) @ p["ours"]["kernel"]
    plain = network.apply(params, x, LEVEL, told)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    one, same, two = (network.apply(params, x, LEVEL, told, key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != two).any() and (one != plain).any()
