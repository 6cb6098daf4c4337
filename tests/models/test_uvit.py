"""U-ViT: the whole against numpy float64, what it depends on, dropout inside the transformer alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import uvit
from tests.models import naive
from tests.models.naive import close, jit, normal

SMALL = dict(patch=2, channels=8, multipliers=(1, 2), blocks=1, width=16, depth=2, heads=2, dropout=0.2)
TAKES = dict(num_classes=3, vector=5, tokens=6, image=2)
X = jnp.float32(normal(0, 3, 16, 8, 1))
LEVEL = jnp.float32([-0.5, 0.0, 0.5])
COND = {
    "label": jnp.array([0, 1, 3]),
    "vector": jnp.float32(normal(1, 3, 5)),
    "tokens": jnp.float32(normal(2, 3, 7, 6)),
    "image": jnp.float32(normal(3, 3, 16, 8, 2)),
}


@pytest.fixture(scope="module")
def small():
    network = uvit((16, 8, 1), **SMALL, **TAKES, out_channels=2)
    return network._replace(apply=jit(network.apply)), naive.random(network.init)


def test_it_starts_as_zero_and_keeps_the_shape(small):
    network, _ = small
    out = network.apply(network.init(jax.random.key(0)), X, LEVEL, COND)
    assert out.shape == (3, 16, 8, 2) and out.dtype == jnp.float32 and not out.any()


def test_the_network_is_its_formula(small):
    network, params = small
    p, cond = naive.float64(params), jax.tree.map(np.float64, COND) | {"label": naive.one_hot(COND["label"], 3)}
    e = naive.embedding(p["embedding"], naive.smooth(np.float64(LEVEL), 8), cond)
    h = naive.patches(np.concatenate([np.float64(X), cond["image"]], -1), 2)
    skip0 = naive.res_block(naive.conv(h, p["conv_in"]), e, p["down0_block0"])
    skip1 = naive.res_block(naive.resample(skip0, "down"), e, p["down1_block0"])
    h = naive.resample(skip1, "down")
    tokens = naive.dense(h, p["narrow"]).reshape(3, 2, 16) + naive.positions(2, 1, 16)
    for name in ("block0", "block1"):
        tokens = naive.dit_block(tokens, e, p[name], 2, cond["tokens"])
    h = h + naive.dense(tokens, p["widen"]).reshape(h.shape)
    h = naive.res_block(np.concatenate([naive.resample(h, "up"), skip1], -1), e, p["up1_block0"])
    h = naive.res_block(np.concatenate([naive.resample(h, "up"), skip0], -1), e, p["up0_block0"])
    h = naive.conv(naive.silu(naive.group_norm(h, p["norm_out"])), p["conv_out"])
    close(network.apply(params, X, LEVEL, COND), naive.images(h, 2), 1e-5)


def test_each_condition_matters_and_is_null_when_left_out(small):
    network, params = small
    out = network.apply(params, X, LEVEL, COND)
    for name, value in COND.items():
        assert np.abs(network.apply(params, X, LEVEL, COND | {name: value[::-1]}) - out).max() > 1e-3, name
    null = {name: jnp.zeros_like(value) for name, value in COND.items()} | {"label": jnp.full(3, 3)}
    close(network.apply(params, X, LEVEL, None), np.asarray(network.apply(params, X, LEVEL, null)), 1e-5)


def test_samples_are_independent_and_the_level_matters(small):
    network, params = small
    out = network.apply(params, X, LEVEL, COND)
    cond = jax.tree.map(lambda c: c[1:2].repeat(3, 0), COND)
    alone = network.apply(params, X[1:2].repeat(3, 0), LEVEL[1:2].repeat(3), cond)
    np.testing.assert_allclose(alone, out[1:2].repeat(3, 0), atol=1e-5)
    assert np.abs(network.apply(params, X, LEVEL + 0.05, COND) - out).max() > 1e-2


def test_dropout_is_inside_the_transformer_alone(small):
    network, params = small
    one, two = (network.apply(params, X, LEVEL, COND, key=jax.random.key(s)) for s in (0, 1))
    assert np.abs(one - network.apply(params, X, LEVEL, COND)).max() > 1e-3 and np.abs(one - two).max() > 1e-3
    params = params | {"widen": jax.tree.map(jnp.zeros_like, params["widen"])}  # nothing comes out of it
    one, two = (network.apply(params, X, LEVEL, COND, key=jax.random.key(s)) for s in (0, 1))
    np.testing.assert_array_equal(one, two)


def test_every_parameter_gets_a_gradient_and_remat_the_same():
    gradients, x = [], X[:, :8, :4]
    cond = COND | {"image": COND["image"][:, :8, :4]}
    for remat in (False, True):
        network = uvit((8, 4, 1), **SMALL | TAKES | dict(multipliers=(1,), depth=1), remat=remat)
        params = naive.random(network.init)

        def loss(p, network=network):
            return jnp.mean(network.apply(p, x, LEVEL, cond, key=jax.random.key(0)) ** 2)

        again = naive.checkpoints(jax.make_jaxpr(loss)(params).jaxpr)
        assert again == (3 if remat else 0)  # two residual blocks and the transformer's
        gradients.append(jit(jax.value_and_grad(loss))(params))
    for path, g in jax.tree_util.tree_flatten_with_path(gradients[0])[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-6, path
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), *gradients)


def test_bfloat16_computes_alike_with_float32_parameters(small):
    network, params = small
    half = uvit((16, 8, 1), **SMALL, **TAKES, out_channels=2, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {jnp.dtype("float32")}
    a, b = network.apply(params, X, LEVEL, COND), jit(half.apply)(params, X, LEVEL, COND)
    assert b.dtype == jnp.float32 and 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((16, 16), dict(), "shape = (16, 16)"),
        ((16, 18, 1), dict(patch=4), "multiples of 4"),
        ((16, 12, 1), dict(multipliers=(1, 1, 1)), "width 12 must be multiples of 8"),
        ((16, 8, 1), dict(patch=4), "multiples of 16"),  # two tokens wide, and there are two levels
        ((8, 8, 1), dict(multipliers=(1, 0)), "multipliers = (1, 0"),
        ((8, 8, 1), dict(patch=0), "patch = 0"),
        ((8, 8, 1), dict(channels=1), "channels = 1"),
        ((8, 8, 1), dict(blocks=0), "blocks = 0"),
        ((8, 8, 1), dict(width=16, heads=3), "width = 16: must be divisible by 4 and by heads = 3"),
        ((8, 8, 1), dict(depth=0), "depth = 0"),
        ((8, 8, 1), dict(out_channels=0), "out_channels = 0"),
        ((8, 8, 1), dict(tokens=0), "tokens = 0"),
        ((8, 8, 1), dict(dropout=1), "dropout = 1"),
    ],
)
def test_bad_sizes_are_refused_at_construction(shape, arguments, words):
    with pytest.raises(ValueError) as error:
        uvit(shape, **arguments)
    assert words in str(error.value)


def test_a_refusal_speaks_of_what_was_asked_for():
    """Not of the image in patches, nor of the transformer as one more level."""
    with pytest.raises(ValueError) as error:
        uvit((16, 12, 1), patch=2, multipliers=(1, 2))
    assert "shape = (16, 12, 1)" in str(error.value) and "(1, 2, 1)" not in str(error.value)
