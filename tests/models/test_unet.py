"""The U-Net: what it depends on, its parts against numpy float64, its options. See also its styles and video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import unet
from diffax.models.unet import DIFFAX, Attention, Embedding, ResBlock, Transformer
from tests.models import naive
from tests.models.naive import close, jit, normal

KIND = dict(dtype=jnp.float32, param_dtype=jnp.float32)
SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3, dropout=0.2)
X = jnp.float32(normal(0, 3, 8, 8, 1))
LEVEL = jnp.float32([-0.5, 0.0, 0.5])
LABEL = jnp.array([0, 1, 3])


@pytest.fixture(scope="module")
def small():
    network = unet((8, 8, 1), **SMALL)
    return network._replace(apply=jit(network.apply)), naive.random(network.init)


def test_it_starts_as_zero_and_keeps_the_shape():
    network = unet((12, 8, 3), channels=8, multipliers=(1, 1, 2), blocks=1, out_channels=5)
    params = network.init(jax.random.key(0))
    out = jit(network.apply)(params, jnp.ones((2, 12, 8, 3)), jnp.zeros(2), None)
    assert out.shape == (2, 12, 8, 5) and not out.any()
    assert all(isinstance(k, str) for k in params)


def test_every_input_matters_and_samples_are_independent(small):
    network, params = small
    out = network.apply(params, X, LEVEL, LABEL)
    assert np.isfinite(out).all()
    alone = network.apply(params, X[1:2].repeat(3, 0), LEVEL[1:2].repeat(3), LABEL[1:2].repeat(3))
    np.testing.assert_allclose(alone, out[1:2].repeat(3, 0), atol=1e-5)
    assert np.abs(out - network.apply(params, X, LEVEL + 0.05, LABEL)).max() > 1e-2
    assert np.abs(out - network.apply(params, X, LEVEL, (LABEL + 1) % 4)).max() > 1e-2


def test_every_parameter_gets_a_gradient():
    network = unet((4, 4, 1), **SMALL | dict(attention=()))
    params, x = naive.random(network.init), X[:, :4, :4]
    grads = jit(jax.grad(lambda p: jnp.sum(network.apply(p, x, LEVEL, LABEL) ** 2)))(params)
    for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-6, path


def test_dropout_is_on_with_a_key_and_off_without(small):
    network, params = small
    plain = network.apply(params, X, LEVEL, LABEL)
    np.testing.assert_array_equal(plain, network.apply(params, X, LEVEL, LABEL))
    one, two = (network.apply(params, X, LEVEL, LABEL, key=jax.random.key(s)) for s in (0, 1))
    assert np.abs(one - plain).max() > 1e-2 and np.abs(one - two).max() > 1e-2


def test_bfloat16_computes_alike_with_float32_parameters(small):
    network, params = small
    half = unet((8, 8, 1), **SMALL, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {jnp.dtype("float32")}
    a, b = network.apply(params, X, LEVEL, LABEL), jit(half.apply)(params, X, LEVEL, LABEL)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_a_block_is_its_formula(resample):
    """norm, SiLU, resample, conv, adaptive norm, SiLU, conv, plus the widened input."""
    layer = ResBlock(8, resample, 0.0, DIFFAX, **KIND)
    x, e = normal(3, 2, 4, 4, 4), normal(4, 2, 6)
    params = naive.of_layer(layer, x, e, train=False)
    got = jit(lambda *a: layer.apply(*a, False))(params, jnp.float32(x), jnp.float32(e))
    close(got, naive.res_block(x, e, naive.float64(params["params"]), resample), 1e-5)


def test_attention_is_the_definition():
    x, layer = normal(2, 2, 4, 4, 16), Attention(2, DIFFAX, **KIND)
    params = naive.of_layer(layer, x)
    got = jit(layer.apply)(params, jnp.float32(x))
    close(got, naive.self_attention(x, naive.float64(params["params"]), 2), 1e-5)


def test_attention_over_time_is_attention_of_each_position_over_the_frames():
    x, layer = normal(2, 2, 3, 2, 4, 8), Attention(2, DIFFAX, frames=3, **KIND)
    flat = jnp.float32(x).reshape(6, 2, 4, 8)
    params = naive.of_layer(layer, flat)
    got = jit(layer.apply)(params, flat).reshape(x.shape)
    close(got, naive.time_attention(x, naive.float64(params["params"]), 2), 1e-5)


def test_transformers_attend_to_themselves_and_to_tokens():
    x, tokens, layer = 1e-3 * normal(2, 2, 4, 2, 8), normal(3, 2, 5, 6), Transformer(2, 2, None, **KIND)
    params = naive.small(naive.of_layer(layer, x, tokens)["params"], "project_in")
    got = jit(layer.apply)({"params": params}, jnp.float32(x), jnp.float32(tokens))
    close(got, naive.transformer(x, tokens, naive.float64(params), 2), 1e-5)


def test_noise_levels_have_distinct_smooth_embeddings():
    layer = Embedding(64, DIFFAX, **KIND)
    levels = jnp.linspace(-2, 2, 401)
    out = np.asarray(layer.apply(naive.of_layer(layer, levels, {}), levels, {}))
    near, far = np.linalg.norm(out[1:] - out[:-1], axis=1), np.linalg.norm(out[20:] - out[:-20], axis=1)
    assert near.max() < 0.5 * np.median(far) and far.min() > 0.02


# ---- options --------------------------------------------------------------------------------------------------------


def test_each_condition_matters_and_tokens_have_no_order():
    cond = {
        "label": LABEL,
        "vector": jnp.float32(normal(1, 3, 5)),
        "tokens": jnp.float32(normal(2, 3, 7, 6)),
        "image": jnp.float32(normal(3, 3, 8, 8, 2)),
        "augment": jnp.float32(normal(4, 3, 4)),
    }
    network = unet(
        (8, 8, 1), channels=8, multipliers=(1,), blocks=1, num_classes=3, vector=5, tokens=6, image=2, augment=4
    )
    params, apply = naive.random(network.init), jit(network.apply)
    out = apply(params, X, LEVEL, cond)
    for name, value in cond.items():
        assert np.abs(apply(params, X, LEVEL, cond | {name: value[::-1]}) - out).max() > 1e-2, name
    close(apply(params, X, LEVEL, cond | {"tokens": cond["tokens"][:, ::-1]}), np.asarray(out))
    null = {name: jnp.zeros_like(value) for name, value in cond.items()} | {"label": jnp.full(3, 3)}
    close(apply(params, X, LEVEL, None), np.asarray(apply(params, X, LEVEL, null)))


def test_remat_computes_the_same_in_less_memory():
    x, tokens, found = X[:, :4, :4], jnp.float32(normal(2, 3, 7, 6)), []
    for remat in (False, True):
        network = unet((4, 4, 1), channels=8, multipliers=(1,), blocks=1, tokens=6, dropout=0.2, remat=remat)
        params = naive.random(network.init)

        def loss(p, network=network):
            out = network.apply(p, x, LEVEL, tokens, key=jax.random.key(1))
            return jnp.mean(out**2), out

        again = naive.checkpoints(jax.make_jaxpr(loss)(params).jaxpr)
        assert again == (6 if remat else 0)  # five blocks, one transformer
        found.append(jit(jax.grad(loss, has_aux=True))(params))
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), *found)


def program(shape, *inputs, **options):
    network = unet(shape, **options)
    params = jax.eval_shape(network.init, jax.random.key(0))
    return jax.make_jaxpr(network.apply)(params, *inputs)


def test_attention_over_time_is_computed_again_too():
    inputs = jnp.zeros((2, 3, 4, 4, 1)), jnp.zeros(2)
    again = program((3, 4, 4, 1), *inputs, channels=8, multipliers=(1,), blocks=1, remat=True)
    assert naive.checkpoints(again.jaxpr) == 7  # five blocks, attention over space and over time


def test_heads_are_so_many_or_as_many_as_their_channels_make():
    options = dict(channels=16, multipliers=(1, 2), blocks=1, attention=(4,))
    small, wide = (jnp.zeros((1, *shape)) for shape in ((4, 4, 1), (8, 8, 1)))
    level = jnp.zeros(1)
    of = lambda x, **heads: str(program(x.shape[1:], x, level, **options | heads))
    assert of(small, multipliers=(1,), heads=2) == of(small, multipliers=(1,), head_channels=8)
    assert of(small, multipliers=(1,), heads=4) != of(small, multipliers=(1,), head_channels=8)
    assert of(wide, heads=4) == of(wide, head_channels=8)  # of the lower level's 32 channels


def test_transformers_are_as_deep_as_their_level_says():
    def depths(depth):
        kind = dict(channels=8, multipliers=(1, 1), blocks=1, attention=(8, 4), tokens=6, depth=depth)
        params = jax.eval_shape(unet((8, 8, 1), **kind).init, jax.random.key(0))
        return {
            name: sum(part.startswith("block") for part in layers)
            for name, layers in params.items()
            if "attention" in name
        }

    upper = ["down0_attention0", "up0_attention0", "up0_attention1"]
    lower = ["down1_attention0", "up1_attention0", "up1_attention1", "middle_attention"]
    assert depths((1, 3)) == dict.fromkeys(upper, 1) | dict.fromkeys(lower, 3)
    assert depths(2) == dict.fromkeys(upper + lower, 2)


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((30, 30, 1), dict(multipliers=(1, 2, 2)), "height 30 and width 30 must be multiples of 4"),
        ((8, 6, 1), dict(multipliers=(1, 1, 1)), "width 6"),
        ((6, 1), dict(multipliers=(1, 1, 1)), "length 6 must be multiples of 4"),
        ((3, 8, 6, 1), dict(multipliers=(1, 1, 1)), "width 6"),
        ((8,), dict(), "shape = (8,): must be of 2 or 3 or 4 positive integers"),
        ((8, 8, 0), dict(), "shape = (8, 8, 0)"),
        ((8, 8, 1), dict(multipliers=()), "multipliers = ()"),
        ((8, 8, 1), dict(attention=(16,)), "[16] is no level's height; they are [8, 4]"),
        ((8, 1), dict(attention=(1,)), "[1] is no level's height; they are [8, 4]"),
        ((8, 8, 1), dict(channels=1), "channels = 1"),
        ((8, 8, 1), dict(multipliers=(1, 2.5)), "multipliers = (1, 2.5)"),
        ((8, 8, 1), dict(blocks=0), "blocks = 0"),
        ((8, 8, 1), dict(head_channels=0), "head_channels = 0"),
        ((8, 8, 1), dict(channels=32, heads=3), "heads = 3: must divide the 32 channels"),
        ((8, 8, 1), dict(depth=(1, 1, 1)), "depth = (1, 1, 1)"),
        ((8, 8, 1), dict(depth=(1, 0)), "depth = 0"),
        ((8, 8, 1), dict(depth=1.5), "depth = 1.5"),
        ((8, 8, 1), dict(out_channels=0), "out_channels = 0"),
        ((8, 8, 1), dict(num_classes=0), "num_classes = 0"),
        ((8, 8, 1), dict(tokens=2.5), "tokens = 2.5"),
        ((8, 8, 1), dict(augment=0), "augment = 0"),
        ((8, 8, 1), dict(dropout=1.0), "dropout = 1.0"),
    ],
)
def test_bad_sizes_are_refused_at_construction(shape, arguments, words):
    with pytest.raises(ValueError) as error:
        unet(shape, **arguments)
    assert words in str(error.value)
