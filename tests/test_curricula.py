"""The numbers of levels that the papers' formulas give, computed by hand."""

import math

import jax
import numpy as np
import pytest

import diffax as dx

C = dx.curricula


def test_square_root_is_that_of_consistency_models():
    # s0 2, s1 150, K 800k: the formula in integers and float64
    steps = [0, 1, 10_000, 100_000, 400_000, 800_000]
    by_hand = [math.ceil(math.sqrt(k / 800_000 * (151**2 - 4) + 4) - 1) + 1 for k in steps]
    assert by_hand == [2, 3, 17, 54, 107, 151]
    assert [int(C.square_root(k, 800_000)) for k in steps] == by_hand


def test_doubling_has_eight_equal_stages():
    assert [int(C.doubling(k * 50_000, 400_000)) for k in range(9)] == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    assert int(C.doubling(49_999, 400_000)) == 11


def test_sinusoidal_rises_and_falls():
    def by_hand(share):
        z = math.floor(10 * math.pi * share**1.5) / 10
        return math.ceil(abs(230 * math.sin(z) + 20))

    shares = [0, 0.2, 0.4, 0.6, 0.63, 0.8, 0.95]
    assert [by_hand(s) for s in shares] == [20, 66, 169, 247, 250, 206, 76]
    assert [int(C.sinusoidal(int(s * 100_000), 100_000)) for s in shares] == [by_hand(s) for s in shares]


@pytest.mark.parametrize("name", C.__all__)
def test_traced_steps_and_steps_beyond_the_end(name):
    curriculum = getattr(C, name)
    steps = np.arange(0, 1500, 100)
    traced = jax.jit(jax.vmap(lambda k: curriculum(k, 1000)))(steps)
    np.testing.assert_array_equal(traced, [int(curriculum(int(k), 1000)) for k in steps])
    assert (traced[11:] == traced[10]).all() and traced.min() >= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0,), "total = 0"), ((10, 0), "s0 = 0"), ((10, 30, 20), "s0 = 30: must be less than s1 = 20")],
)
def test_bad_input_is_named(arguments, words):
    for name in C.__all__:
        with pytest.raises(ValueError) as error:
            getattr(C, name)(1, *arguments)
        assert words in str(error.value)
