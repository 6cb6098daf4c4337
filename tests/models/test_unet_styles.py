"""A whole U-Net in each of the published styles, of images and of sound, against numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import unet
from diffax.models.unet import ADM, DDPM, DDPMPP, DIFFAX, IDDPM, NCSNPP
from tests.models import naive
from tests.models.naive import close, jit, normal

SINES_FIRST = lambda c_noise, width: naive.sinusoid(c_noise, width, endpoint=True, swap=True)
SONG = dict(early=True, scale=0.5**0.5, last_only=True, epsilon=1e-6, block=dict(shift=True, widen=True))
NCSN = dict(noise=lambda c_noise, width: naive.fourier(c_noise, 2 * width), image_skips=True)
STYLES = {
    "diffax": (DIFFAX, dict(noise=naive.smooth)),
    "ddpm": (DDPM, dict(noise=SINES_FIRST, strided=(0, 1), epsilon=1e-6, block=dict(shift=True))),
    "iddpm": (IDDPM, dict(noise=naive.sinusoid, strided=(1, 1))),
    "adm": (ADM, dict(noise=naive.sinusoid)),
    "ddpmpp": (DDPMPP, SONG | dict(noise=SINES_FIRST)),
    "ncsnpp": (NCSNPP, SONG | NCSN | dict(block=SONG["block"] | dict(weights=naive.BLUR))),
}
"""Each with what the papers and their code say of it."""


def by_definition(p, x, c_noise, given, levels, facts):
    """One block a level; the lowest has attention, of heads of 8 channels, and the middle."""
    e = naive.embedding(p["embedding"], facts["noise"](c_noise, 8), given, facts.get("early", False))
    common = dict(scale=facts.get("scale", 1.0), epsilon=facts.get("epsilon", 1e-5))
    strided, lowest = facts.get("strided"), levels - 1

    def block(name, h, how=None):
        return naive.res_block(h, e, p[name], how, **common, **facts.get("block", {}))

    def attend(name, h):
        return naive.self_attention(h, p[name], h.shape[-1] // 8, **common)

    def join(h, skip):
        return np.concatenate([h, skip], -1)

    seen = join(x, given["image"])
    skips = [naive.conv(seen, p["conv_in"])]
    skips.append(block("down0_block0", skips[-1]))
    for level in range(1, levels):
        if strided:
            skips.append(naive.conv(skips[-1], p[f"down{level}_resample"], stride=2, padding=strided))
        else:
            skips.append(block(f"down{level}_resample", skips[-1], "down"))
        if facts.get("image_skips"):  # what the level below sees of the image is all that has come together here
            seen = naive.conv(seen, p[f"down{level}_image"], padding=(2, 2))
            seen = (skips[-1] + naive.resample(seen, "down", naive.BLUR, border=True)) * common["scale"]
            skips[-1] = seen
        h = block(f"down{level}_block0", skips[-1])
        skips.append(attend(f"down{level}_attention0", h) if level == lowest else h)

    h = block("middle_block1", attend("middle_attention", block("middle_block0", skips[-1])))
    for level in reversed(range(levels)):
        for i in range(2):
            h = block(f"up{level}_block{i}", join(h, skips.pop()))
            if level == lowest and (i == 1 or not facts.get("last_only")):
                h = attend(f"up{level}_attention{i}", h)
        if level > 0:
            name = f"up{level}_resample"
            h = naive.conv(naive.resample(h, "up"), p[name]) if strided else block(name, h, "up")
    return naive.conv(naive.silu(naive.group_norm(h, p["norm_out"], epsilon=common["epsilon"])), p["conv_out"])


@pytest.mark.parametrize(
    ("name", "sides", "multipliers"),
    [
        *((name, (8, 4), (1, 2)) for name in STYLES if name != "ncsnpp"),
        ("ncsnpp", (8, 4), (1, 1, 2)),
        ("ncsnpp", (8,), (1, 2)),
        ("ddpm", (8,), (1, 2)),
    ],
)
def test_each_style_starts_as_zero_and_is_its_formula(name, sides, multipliers):
    (style, facts), levels = STYLES[name], len(multipliers)
    options = dict(channels=8, multipliers=multipliers, blocks=1, attention=(8 >> levels - 1,), head_channels=8)
    network = unet((*sides, 2), **options, style=style, num_classes=3, vector=5, augment=4, image=2)
    x, c_noise = normal(0, 2, *sides, 2), np.array([-0.4, 0.3])
    cond = dict(vector=normal(1, 2, 5), augment=normal(2, 2, 4), image=normal(3, 2, *sides, 2))
    label = np.array([1, 3])
    told = jax.tree.map(jnp.float32, cond) | {"label": jnp.array(label)}
    apply = jit(network.apply)
    first = apply(network.init(jax.random.key(0)), jnp.float32(x), jnp.float32(c_noise), told)
    assert first.shape == x.shape and not first.any()
    params = naive.small(naive.random(network.init), "conv_in")
    given = cond | {"label": naive.one_hot(label, 3)}
    expected = by_definition(naive.float64(params), x, c_noise, given, levels, facts)
    close(apply(params, jnp.float32(x), jnp.float32(c_noise), told), expected, 1e-4)
