"""What a network is told: nulls for what is left out, one sentence for what it does not take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import dit, edm2, unet, uvit
from diffax.models.conditioning import checked, given, told
from tests.models.naive import normal

X = jnp.zeros((3, 8, 8, 1))
SIZES = dict(num_classes=3, vector=5, tokens=6, image=2, augment=4)
ALL = checked(**SIZES)
COND = {
    "label": jnp.array([0, 2, 3]),
    "vector": jnp.float32(normal(1, 3, 5)),
    "tokens": jnp.float32(normal(2, 3, 7, 6)),
    "image": jnp.float32(normal(3, 3, 8, 8, 2)),
    "augment": jnp.float32(normal(4, 3, 4)),
}


def test_all_are_handed_on_and_labels_become_rows():
    found = given(COND, ALL, X)
    assert list(found) == list(COND)
    np.testing.assert_array_equal(found.pop("label"), [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    for name, value in found.items():
        np.testing.assert_array_equal(value, COND[name])


@pytest.mark.parametrize("name", COND)
@pytest.mark.parametrize("x", [X, jnp.zeros((3, 16, 1)), jnp.zeros((3, 2, 8, 8, 1))], ids=["image", "sound", "video"])
def test_what_is_left_out_is_null(name, x):
    cond = {k: v for k, v in COND.items() if k not in (name, "image")}
    shape = {"label": (3, 3), "vector": (3, 5), "tokens": (3, 1, 6), "image": (*x.shape[:-1], 2), "augment": (3, 4)}
    for left_out in (cond, cond | {name: None}):
        found = given(left_out, ALL, x)
        assert found[name].shape == shape[name] and not found[name].any()
        assert all(found[other].any() for other in cond)


def test_the_label_after_the_last_class_is_none():
    np.testing.assert_array_equal(given(jnp.full(3, 3), checked(num_classes=3), X)["label"], np.zeros((3, 3)))


@pytest.mark.parametrize("name", COND)
def test_the_one_condition_may_be_given_as_it_is(name):
    takes = tuple(pair for pair in ALL if pair[0] == name)
    bare, named = (given(cond, takes, X)[name] for cond in (COND[name], {name: COND[name]}))
    np.testing.assert_array_equal(bare, named)
    assert bare.any()


@pytest.mark.parametrize(
    ("takes", "cond", "words"),
    [
        (ALL, {"labels": COND["label"]}, "cond has labels: this network takes label, vector, tokens, image, augment"),
        (checked(num_classes=3), {"vector": COND["vector"]}, "cond has vector: this network takes label"),
        (ALL, COND["label"], "must be a dict of label, vector, tokens, image, augment"),
        (ALL, {"vector": jnp.zeros((3, 4))}, "cond vector is of shape (3, 4): must be (3, 5)"),
        (ALL, {"tokens": jnp.zeros((3, 7, 5))}, "cond tokens is of shape (3, 7, 5)"),
        (ALL, {"image": jnp.zeros((3, 8, 8, 1))}, "cond image is of shape (3, 8, 8, 1)"),
        (ALL, {"augment": jnp.zeros((3, 9))}, "cond augment is of shape (3, 9)"),
        (ALL, {"vector": jnp.zeros((2, 5))}, "cond vector is of shape (2, 5)"),
    ],
)
def test_unknown_names_and_wrong_widths_are_refused(takes, cond, words):
    with pytest.raises(ValueError) as error:
        given(cond, takes, X)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"), [("image", (3, 4, 4, 2)), ("tokens", (3, 6)), ("vector", (3, 1, 5)), ("label", (2,))]
)
def test_other_shapes_than_those_of_the_table_are_refused(name, shape):
    with pytest.raises(ValueError) as error:
        given({name: jnp.zeros(shape, int)}, ALL, X)
    assert f"cond {name} is of shape {shape}" in str(error.value)


def test_a_network_without_conditions_takes_none():
    assert given(None, (), X) == {} and given({}, (), X) == {}
    with pytest.raises(ValueError) as error:
        given({"label": COND["label"]}, (), X)
    assert "cond has label" in str(error.value)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_sizes_are_positive_integers(name, size):
    with pytest.raises(ValueError) as error:
        unet((8, 8, 1), **{name: size})
    assert f"{name} = {size}" in str(error.value)


# ---- labels that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({"label": jnp.array([0, 4, 3])}, "cond label = [0 4 3]: must lie in [0, 3]; 3 says no label"),
        ({"label": jnp.array([0, -1, 3])}, "cond label = [ 0 -1 3]: must lie in [0, 3]"),
        ({"label": np.float32([0, 1, 2])}, "cond label is of float32: must be integers"),
        ({"label": jnp.array([True, False, True])}, "cond label is of bool: must be integers"),
        ({"label": jnp.eye(3, dtype=int)}, "cond label is of shape (3, 3): must be (3,), the numbers of the classes"),
        ({"label": 1}, "cond label is of shape (): must be (3,)"),
        ({"label": "cat"}, "cond label = 'cat': must be an array of numbers"),
        ({"vector": "a text"}, "cond vector = 'a text': must be an array of numbers"),
        ({"vector": np.zeros((3, 5), np.complex64)}, "cond vector is of complex64: must be real numbers"),
        ({"tokens": 1.0}, "cond tokens is of shape (): must be (3, any, 6)"),
        ({"image": lambda: None}, "must be an array of numbers"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_condition_is_refused(cond, words, compiled):
    found = lambda: given(cond, ALL, X)
    with pytest.raises(ValueError) as error:
        (jax.jit(found) if compiled else found)()
    assert words in str(error.value)


def test_a_traced_label_out_of_range_is_no_answer():
    """Not "no label" without a word: the row of that sample is NaN, and with it what the network says of it alone."""
    rows = jax.jit(lambda label: given(label, checked(num_classes=3), X)["label"])(jnp.array([1, 4, -1]))
    np.testing.assert_array_equal(rows, [[0, 1, 0], [np.nan] * 3, [np.nan] * 3])
    network = unet((8, 8, 1), channels=8, multipliers=(1,), attention=(), num_classes=3)
    params = jax.tree.map(lambda p: p + 0.01, network.init(jax.random.key(0)))
    x = jnp.float32(normal(0, 3, 8, 8, 1))
    out = jax.jit(network.apply)(params, x, jnp.zeros(3), jnp.array([1, 4, 3]))
    np.testing.assert_array_equal(np.isnan(out).all((1, 2, 3)), [False, True, False])
    np.testing.assert_array_equal(np.isnan(out).any((1, 2, 3)), [False, True, False])


def test_labels_of_any_integer_dtype():
    for dtype in (np.uint8, np.int32, np.int64):
        rows = given(np.array([0, 2, 3], dtype), checked(num_classes=3), X)["label"]
        np.testing.assert_array_equal(rows, [[1, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_a_network_is_told_one_level_a_sample():
    np.testing.assert_array_equal(told([1.0, 2.0, 3.0], X), [1, 2, 3])
    for c_noise, words in (
        (jnp.ones((3, 8, 8, 1)), "c_noise has shape (3, 8, 8, 1) for x of shape (3, 8, 8, 1): must be [batch] = (3,)"),
        (1.0, "c_noise has shape () for x of shape (3, 8, 8, 1)"),
        ("1", "c_noise = '1': must be a number"),
    ):
        with pytest.raises(ValueError) as error:
            told(c_noise, X)
        assert words in str(error.value)


NETWORKS = {
    "unet": unet((8, 8, 1), channels=8, multipliers=(1,), blocks=1),
    "dit": dit((8, 8, 1), width=16, depth=1, heads=2),
    "uvit": uvit((8, 8, 1), channels=8, blocks=1, width=16, depth=1, heads=2),
    "edm2": edm2((8, 8, 1), channels=8, multipliers=(1,), blocks=1, attention=()),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_level_for_each_pixel_is_refused(network):
    params = jax.eval_shape(network.init, jax.random.key(0))
    jax.eval_shape(network.apply, params, X, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"c_noise has shape \(3, 8, 8, 1\) for x of shape"):
        jax.eval_shape(network.apply, params, X, jnp.zeros((3, 8, 8, 1)))
