"""Augmentation: each transformation against what it does to a known picture, and what the network is told of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax import augment
from diffax.augment import _warp

IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6, 2)), jnp.float32)


def warped(image, linear=((1, 0), (0, 1)), moved=(0.0, 0.0)):
    return np.asarray(_warp(image, jnp.asarray(np.linalg.inv(linear), jnp.float32), jnp.asarray(moved)))


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        (np.eye(2), IMAGE),
        (np.diag([1, -1]), IMAGE[:, ::-1]),
        (np.diag([-1, 1]), IMAGE[::-1]),
        ([[0, -1], [1, 0]], np.rot90(IMAGE, 1)),  # rows go down: from the first axis to the second
        (-np.eye(2), np.rot90(IMAGE, 2)),
    ],
)
def test_mirrors_and_quarter_turns_move_pixels(linear, expected):
    np.testing.assert_allclose(warped(IMAGE, linear), expected, atol=1e-5)


def test_moving_by_whole_pixels_and_the_mirrored_outside():
    found = warped(IMAGE, moved=(2 / 6, -1 / 6))
    np.testing.assert_allclose(found[2:, :-1], IMAGE[:-2, 1:], atol=1e-5)
    np.testing.assert_allclose(found[1, :-1], IMAGE[1, 1:], atol=1e-5)  # row -1 is row 1
    np.testing.assert_allclose(found[:, -1][2:], IMAGE[:-2, -2], atol=1e-5)


def test_twice_as_large_is_read_half_as_far_from_the_middle():
    ramp = jnp.broadcast_to(jnp.arange(9.0)[:, None, None], (9, 9, 1))
    np.testing.assert_allclose(warped(ramp, 2 * np.eye(2))[..., 0], 4 + (ramp[..., 0] - 4) / 2, atol=1e-5)


def test_an_image_that_is_not_square_is_turned_as_a_rigid_body():
    tall = jnp.zeros((9, 5, 1)).at[4, 3].set(1)  # one pixel right of the middle
    found = warped(tall, [[0, -1], [1, 0]])
    assert found[3, 2, 0] == pytest.approx(1, abs=1e-5)  # one pixel above it


def test_what_is_not_chosen_is_told_as_zeros_but_for_the_mirror():
    x = jnp.broadcast_to(IMAGE, (200, *IMAGE.shape))
    found, told = augment.geometric(jax.random.key(0), x, 0.0)
    assert not told[:, 1:].any() and 60 < told[:, 0].sum() < 140
    for image, mirrored in zip(found, told[:, 0], strict=True):
        np.testing.assert_allclose(image, IMAGE[:, ::-1] if mirrored else IMAGE, atol=1e-5)


def test_what_is_told_has_the_law_of_the_table():
    _, told = augment.geometric(jax.random.key(1), jnp.zeros((4000, 2, 2, 1)), 1.0)
    told = np.asarray(told, np.float64)
    assert told.shape[1] == augment.TOLD
    np.testing.assert_allclose(told[:, :2].mean(0), 0.5, atol=0.03)
    for column in (2, 7, 8):  # normal
        assert abs(told[:, column].mean()) < 0.06 and told[:, column].std() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose((told[:, 3] + 1) ** 2 + told[:, 4] ** 2, 1, atol=1e-5)
    assert (told[:, 5] ** 2 + told[:, 6] ** 2).mean() == pytest.approx(1, abs=0.08)
    seldom = np.asarray(augment.geometric(jax.random.key(1), jnp.zeros((4000, 2, 2, 1)), 0.12)[1])
    np.testing.assert_allclose((seldom[:, [2, 4, 5, 7]] != 0).mean(0), 0.12, atol=0.02)
    assert (seldom[:, 1] != 0).mean() == pytest.approx(0.06, abs=0.02)


def test_what_is_told_is_what_was_done():
    """The picture of a ramp tells by how much it was scaled, turned and moved."""
    rows, columns = np.meshgrid(np.arange(33.0) - 16, np.arange(33.0) - 16, indexing="ij")
    x = jnp.asarray(np.stack([rows, columns], -1), jnp.float32)
    found, told = augment.geometric(jax.random.key(2), jnp.broadcast_to(x, (50, *x.shape)), 0.5)
    for image, (lr, tb, size, cos, sin, along, across, down, right) in zip(
        np.asarray(found), np.asarray(told), strict=True
    ):
        turn = np.array([[cos + 1, -sin], [sin, cos + 1]])
        n = np.hypot(along, across)
        c, s = (along / n, across / n) if n else (1.0, 0.0)
        axis = np.array([[c, -s], [s, c]])
        candidates = []
        for sign in (1, -1):  # n along a is told as -n along a + pi, which is the same axis
            stretched = axis @ np.diag(2 ** (0.2 * sign * n * np.array([1, -1]))) @ axis.T
            linear = turn @ stretched @ np.diag([1 - 2 * tb, 1 - 2 * lr]) * 2 ** (0.2 * size)
            candidates.append(np.linalg.inv(linear) @ (np.array([2, -3]) - np.array([down, right]) * 33 / 8))
        if np.abs(candidates).max() < 12:  # inside, on the whole
            assert min(np.abs(image[18, 13] - expected).max() for expected in candidates) < 1e-3


def test_a_sample_is_augmented_alike_in_any_batch():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 5, 1)), jnp.float32)
    found, told = augment.geometric(jax.random.key(3), x, 1.0)
    alone, said = augment.geometric(jax.random.key(3), x[2:3], 1.0, jnp.array([2]))
    np.testing.assert_allclose(alone[0], found[2], atol=1e-6)
    np.testing.assert_allclose(said[0], told[2], atol=1e-6)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_bad_probability_is_named(probability):
    with pytest.raises(ValueError, match="probability = "):
        augment.geometric(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), probability)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_with_keys_of_any_implementation_too(implementation):
    key, x = jax.random.key(3, impl=implementation), jnp.broadcast_to(IMAGE, (4, *IMAGE.shape))
    found, told = augment.geometric(key, x, 1.0)
    alone, said = augment.geometric(key, x[2:], 1.0, jnp.array([2, 3]))
    np.testing.assert_allclose(alone, found[2:], atol=1e-6)
    np.testing.assert_allclose(said, told[2:], atol=1e-6)
    assert len(np.unique(np.asarray(told)[:, 2])) == 4


def test_with_x64_and_strict_promotion_images_keep_their_dtype():
    for wide, promotion in ((True, "standard"), (False, "strict")):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
            found, told = jax.eval_shape(lambda x: augment.geometric(jax.random.key(3), x, 0.5), IMAGE[None])
            assert found.dtype == told.dtype == jnp.float32
    half = IMAGE[None].astype(jnp.bfloat16)
    assert jax.eval_shape(lambda x: augment.geometric(jax.random.key(3), x, 0.5), half)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, IMAGE[None]), "key = None: must be a JAX key"),
        ((jax.random.key(0), IMAGE), "x has shape (6, 6, 2): must be [batch, height, width, channels]"),
        ((jax.random.key(0), IMAGE[None][:0]), "x has shape (0, 6, 6, 2)"),
        ((jax.random.key(0), np.zeros((1, 2, 2, 1), np.uint8)), "x is of uint8: must be floating-point numbers"),
        ((jax.random.key(0), None), "x is of object"),
        ((jax.random.key(0), IMAGE[None], "1"), "probability = '1': must lie in"),
        ((jax.random.key(0), IMAGE[None], np.ones(1)), "probability has shape (1,): must be one number"),
        ((jax.random.key(0), IMAGE[None], 0.5, [0, 1]), "index has shape (2,): must be [batch] = (1,)"),
        ((jax.random.key(0), IMAGE[None], 0.5, [0.5]), "index is of float64: must be integers"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError) as error:
        augment.geometric(*arguments)
    assert words in str(error.value)
