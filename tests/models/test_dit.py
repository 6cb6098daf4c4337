"""DiT: patches and positions against loops, blocks and the whole against numpy float64, what it depends on."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import dit
from diffax.models.dit import Block, from_patches, positions, to_patches
from tests.models import naive
from tests.models.naive import close, jit, normal

KIND = dict(dtype=jnp.float32, param_dtype=jnp.float32)
SMALL = dict(patch=2, width=16, depth=2, heads=2, num_classes=3, vector=5, tokens=6, image=2, dropout=0.2)
X = jnp.float32(normal(0, 3, 8, 4, 1))
LEVEL = jnp.float32([-0.5, 0.0, 0.5])
COND = {
    "label": jnp.array([0, 1, 3]),
    "vector": jnp.float32(normal(1, 3, 5)),
    "tokens": jnp.float32(normal(2, 3, 7, 6)),
    "image": jnp.float32(normal(3, 3, 8, 4, 2)),
}


@pytest.fixture(scope="module")
def small():
    network = dit((8, 4, 1), **SMALL, out_channels=2)
    return network._replace(apply=jit(network.apply)), naive.random(network.init)


def test_it_starts_as_zero_and_its_blocks_as_identities(small):
    network, _ = small
    params = network.init(jax.random.key(0))
    out = network.apply(params, X, LEVEL, COND)
    assert out.shape == (3, 8, 4, 2) and out.dtype == jnp.float32 and not out.any()
    h, e, tokens = (jnp.float32(normal(0, 2, *shape)) for shape in ((5, 16), (16,), (7, 6)))
    block = jit(lambda *a: Block(2, 0.0, **KIND).apply(*a, False))
    np.testing.assert_array_equal(block({"params": params["block0"]}, h, e, tokens), h)


def test_patches_are_those_of_a_loop_and_the_way_back_is_their_inverse():
    x = normal(0, 2, 6, 9, 2)
    cut = to_patches(jnp.float32(x), 3)
    np.testing.assert_array_equal(cut, np.float32(naive.patches(x, 3)))
    np.testing.assert_array_equal(from_patches(cut, 3), np.float32(x))


def test_positions_are_sines_and_cosines_of_column_and_row():
    np.testing.assert_allclose(positions(3, 5, 16), naive.positions(3, 5, 16), rtol=1e-12)
    distinct = {tuple(np.round(row, 3)) for row in positions(16, 16, 64)}
    assert len(distinct) == 256


@pytest.mark.parametrize("cross", [False, True], ids=["alone", "with tokens"])
def test_a_block_is_its_formula(cross):
    x, e, tokens = 1e-3 * normal(0, 2, 5, 16), normal(1, 2, 12), normal(2, 2, 3, 6) if cross else None
    layer = Block(4, 0.0, **KIND)
    params = naive.of_layer(layer, x, e, tokens, train=False)
    got = jit(lambda *a: layer.apply(*a, False))(params, *jax.tree.map(jnp.float32, (x, e, tokens)))
    close(got, naive.dit_block(x, e, naive.float64(params["params"]), 4, tokens), 1e-5)


def test_the_network_is_its_formula(small):
    network, params = small
    p, cond = naive.float64(params), jax.tree.map(np.float64, COND)
    e = naive.dense(naive.silu(naive.dense(naive.smooth(np.float64(LEVEL), 256), p["noise0"])), p["noise1"])
    e = e + p["label"]["kernel"][np.asarray(COND["label"])]  # the last row is that of "no label"
    e = naive.silu(e + naive.dense(cond["vector"], p["vector"]))
    h = naive.patches(np.concatenate([np.float64(X), cond["image"]], -1), 2).reshape(3, 8, -1)
    h = naive.dense(h, p["patches"]) + naive.positions(4, 2, 16)
    for name in ("block0", "block1"):
        h = naive.dit_block(h, e, p[name], 2, cond["tokens"])
    scale, shift = np.split(naive.dense(e, p["modulation"])[:, None], 2, -1)
    h = naive.dense(naive.layer_norm(h) * (1 + scale) + shift, p["out"])
    close(network.apply(params, X, LEVEL, COND), naive.images(h.reshape(3, 4, 2, -1), 2), 1e-5)


def test_each_condition_matters_and_is_null_when_left_out(small):
    network, params = small
    out = network.apply(params, X, LEVEL, COND)
    for name, value in COND.items():
        assert np.abs(network.apply(params, X, LEVEL, COND | {name: value[::-1]}) - out).max() > 1e-2, name
    null = {name: jnp.zeros_like(value) for name, value in COND.items()} | {"label": jnp.full(3, 3)}
    close(network.apply(params, X, LEVEL, None), np.asarray(network.apply(params, X, LEVEL, null)), 1e-5)


def test_tokens_have_no_order(small):
    network, params = small
    out = network.apply(params, X, LEVEL, COND)
    close(network.apply(params, X, LEVEL, COND | {"tokens": COND["tokens"][:, ::-1]}), np.asarray(out), 1e-5)


def test_patches_are_told_apart_by_their_positions_alone(small, monkeypatch):
    """Without them, patches in another order give the output in that order."""
    network, params = small

    def swap(a):  # the upper four patches and the lower four
        return jnp.concatenate([a[:, 4:], a[:, :4]], 1)

    def swapped(apply):
        return swap(apply(params, swap(X), LEVEL, COND | {"image": swap(COND["image"])}))

    out = network.apply(params, X, LEVEL, COND)
    assert np.abs(swapped(network.apply) - out).max() > 1e-2
    none = lambda rows, columns, width: np.zeros((rows * columns, width))
    monkeypatch.setattr(sys.modules["diffax.models.dit"], "positions", none)  # by name it is the function
    apply = jit(dit((8, 4, 1), **SMALL, out_channels=2).apply)
    close(swapped(apply), np.asarray(apply(params, X, LEVEL, COND)), 1e-5)


def test_samples_are_independent_and_the_level_matters(small):
    network, params = small
    out = network.apply(params, X, LEVEL, COND)
    cond = jax.tree.map(lambda c: c[1:2].repeat(3, 0), COND)
    alone = network.apply(params, X[1:2].repeat(3, 0), LEVEL[1:2].repeat(3), cond)
    np.testing.assert_allclose(alone, out[1:2].repeat(3, 0), atol=1e-5)
    assert np.abs(network.apply(params, X, LEVEL + 0.05, COND) - out).max() > 1e-2


def test_dropout_is_on_with_a_key_and_off_without(small):
    network, params = small
    plain = network.apply(params, X, LEVEL, COND)
    one, two = (network.apply(params, X, LEVEL, COND, key=jax.random.key(s)) for s in (0, 1))
    assert np.abs(one - plain).max() > 1e-2 and np.abs(one - two).max() > 1e-2


def test_every_parameter_gets_a_gradient_and_remat_the_same():
    gradients = []
    for remat in (False, True):
        network = dit((8, 4, 1), **SMALL | dict(depth=1), remat=remat)
        params = naive.random(network.init)

        def loss(p, network=network):
            return jnp.mean(network.apply(p, X, LEVEL, COND, key=jax.random.key(0)) ** 2)

        names = [equation.primitive.name for equation in jax.make_jaxpr(loss)(params).eqns]
        assert any(name in ("checkpoint", "remat", "remat2") for name in names) == remat
        gradients.append(jit(jax.value_and_grad(loss))(params))
    for path, g in jax.tree_util.tree_flatten_with_path(gradients[0])[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-6, path
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), *gradients)


def test_bfloat16_computes_alike_with_float32_parameters(small):
    network, params = small
    half = dit((8, 4, 1), **SMALL, out_channels=2, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {jnp.dtype("float32")}
    a, b = network.apply(params, X, LEVEL, COND), jit(half.apply)(params, X, LEVEL, COND)
    assert b.dtype == jnp.float32 and 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_labels_start_small():
    """At a deviation of 0.02, as in the paper's code, for all classes and "no label"."""
    network = dit((4, 4, 1), width=16, depth=1, heads=2, num_classes=999)
    kernel = network.init(jax.random.key(0))["label"]["kernel"]
    assert kernel.shape == (1000, 16) and float(kernel.std()) == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((8, 8), dict(), "shape = (8, 8): must be (height, width, channels)"),
        ((9, 8, 1), dict(), "shape = (9, 8, 1): must be (height, width, channels), the sides multiples of 2"),
        ((8, 6, 1), dict(patch=4), "multiples of 4"),
        ((8, 8, 0), dict(), "shape = (8, 8, 0)"),
        ((8, 8, 1), dict(patch=0), "patch = 0"),
        ((8, 8, 1), dict(width=16, heads=3), "width = 16: must be divisible by 4 and by heads = 3"),
        ((8, 8, 1), dict(width=18, heads=3), "width = 18"),
        ((8, 8, 1), dict(width=0), "width = 0"),
        ((8, 8, 1), dict(depth=0), "depth = 0"),
        ((8, 8, 1), dict(heads=0), "heads = 0"),
        ((8, 8, 1), dict(out_channels=0), "out_channels = 0"),
        ((8, 8, 1), dict(num_classes=0), "num_classes = 0"),
        ((8, 8, 1), dict(dropout=-0.1), "dropout = -0.1"),
    ],
)
def test_bad_sizes_are_refused_at_construction(shape, arguments, words):
    with pytest.raises(ValueError) as error:
        dit(shape, **arguments)
    assert words in str(error.value)
