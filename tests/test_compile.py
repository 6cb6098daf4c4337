"""What is kept in memory on a CPU changes where numbers are computed, not the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffax import _compile
from diffax.models.layers import conv, group_norm


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def gradients(apply, *args):
    """Of a random combination of the outputs, compiled as diffax compiles its train step."""

    def total(*args):
        out = apply(*args)
        return (out * normal(9, *out.shape)).sum()

    every = jax.grad(total, argnums=tuple(range(len(args))))
    return jax.jit(every, compiler_options=_compile.options())(*args)


def same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    "options",
    [
        dict(size=3),
        dict(size=1),
        dict(size=3, strides=2, padding=[(0, 1)]),
        dict(size=3, strides=2, padding=[(1, 1)]),
        dict(size=3, padding=2),
        dict(size=4, strides=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution_has_the_gradients_of_flaxs(options, dims):
    options = dict(options)
    size = options.pop("size")
    if isinstance(options.get("padding"), list):
        options["padding"] = options["padding"] * dims
    x = normal(0, 2, *(8,) * dims, 3)
    ours, theirs = conv(5, size, dims, **options), nn.Conv(5, (size,) * dims, **options)
    params = jax.tree.map(lambda p: normal(1, *p.shape), theirs.init(jax.random.key(0), x))
    wanted = jax.grad(lambda p, x: (theirs.apply(p, x) * normal(9, *theirs.apply(p, x).shape)).sum(), (0, 1))(params, x)
    same(gradients(ours.apply, params, x), wanted)


@pytest.mark.parametrize("silu", [False, True])
def test_group_normalisation_has_the_gradients_of_flaxs(silu):
    x, scale, shift = normal(0, 3, 4, 4, 8), normal(1, 1, 8), normal(2, 1, 8)
    layer = nn.GroupNorm(2, epsilon=1e-5)

    def theirs(x, scale, shift):
        y = layer.apply({"params": {"scale": scale[0], "bias": shift[0]}}, x)
        return nn.silu(y) if silu else y

    wanted = jax.grad(lambda *args: (theirs(*args) * normal(9, *x.shape)).sum(), (0, 1, 2))(x, scale, shift)
    same(gradients(lambda x, scale, shift: group_norm(x, scale, shift, 2, 1e-5, silu), x, scale, shift), wanted)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere nothing is kept")
def test_what_is_kept_is_not_computed_again_where_it_is_read():
    def function(x):
        y = _compile.kept(jnp.exp(x) * x)
        return y.T.reshape(-1), y + 1

    def products(**options):
        return jax.jit(function, **options).lower(normal(0, 300, 400)).compile().as_text().count(" multiply(")

    assert products(compiler_options=_compile.options()) == 1 <= products()  # 2 with jax 0.10
