"""U-Nets of video: of images, but for the attention over time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import unet
from tests.models import naive
from tests.models.naive import close, jit, normal

VIDEO = jnp.float32(normal(5, 2, 3, 8, 8, 1))
LEVEL = jnp.float32([-0.5, 0.5])
COND = {
    "label": jnp.array([0, 2]),
    "tokens": jnp.float32(normal(6, 2, 5, 6)),
    "image": jnp.float32(normal(7, 2, 3, 8, 8, 2)),  # a video too
}
SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3, tokens=6, image=2)


@pytest.fixture(scope="module")
def video():
    network = unet((3, 8, 8, 1), **SMALL)
    apply = jit(network.apply)
    assert not apply(network.init(jax.random.key(0)), VIDEO, LEVEL, COND).any()  # starts as zero
    return lambda params, x, cond=COND: apply(params, x, LEVEL, cond), naive.random(network.init)


def timeless(params, layer):
    """Parameters whose attention over time has that layer at zero."""
    zero = lambda p: p | {layer: jax.tree.map(jnp.zeros_like, p[layer])}
    return {name: zero(p) if name.endswith("_time") else p for name, p in params.items()}


def test_without_attention_over_time_the_frames_are_so_many_images(video):
    apply, params = video
    images = {name: p for name, p in params.items() if not name.endswith("_time")}
    assert len(params) - len(images) == 4  # the lower level's, one going down and two going up, and the middle's
    cond = {name: value.repeat(3, 0) for name, value in COND.items()} | {"image": COND["image"].reshape(6, 8, 8, 2)}
    network = unet((8, 8, 1), **SMALL)
    expected = np.asarray(jit(network.apply)(images, VIDEO.reshape(6, 8, 8, 1), LEVEL.repeat(3), cond))
    close(apply(timeless(params, "project"), VIDEO), expected.reshape(VIDEO.shape), 1e-5)


def test_every_frame_sees_all_others(video):
    apply, params = video
    out = apply(params, VIDEO)
    for frame in range(3):
        change = np.abs(apply(params, VIDEO.at[:, frame].multiply(-1)) - out).max((2, 3, 4))
        assert (change > 1e-3).all()
    other = apply(params, VIDEO.at[0].multiply(-1))
    np.testing.assert_allclose(other[1], out[1], atol=1e-5)  # samples do not see each other


def test_frames_are_told_apart_by_their_number_alone(video):
    apply, params = video
    cond = COND | {"image": COND["image"][:, ::-1]}
    assert np.abs(apply(params, VIDEO[:, ::-1], cond)[:, ::-1] - apply(params, VIDEO)).max() > 1e-2
    params = timeless(params, "position")
    close(apply(params, VIDEO[:, ::-1], cond)[:, ::-1], np.asarray(apply(params, VIDEO)), 1e-5)
