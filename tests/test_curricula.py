"""The numbers of levels that the papers' formulas give, computed by hand in whole numbers or in many digits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

C = dx.curricula


def square_root(k, total, s0=2, s1=150):
    """ceil(sqrt(X) - 1) + 1 is the least n with n^2 >= X = s0^2 + k ((s1 + 1)^2 - s0^2) / K, in whole numbers."""
    x = s0 * s0 * total + min(k, total) * ((s1 + 1) ** 2 - s0 * s0)  # K X
    n = math.isqrt(x // total)
    return n if n * n * total >= x else n + 1


def doubling(k, total, s0=10, s1=1280):
    # K' <= K / log2(2 r) while (2 r)^K' <= 2^K
    ratio, stage = 2 * (s1 // s0), 1
    while ratio ** (stage + 1) <= 2**total:
        stage += 1
    return min(s0 * 2 ** (k // stage), s1) + 1


def sinusoidal(k, total, s0=20, s1=250, rho=7.0):
    z = math.floor(10 * math.pi * (min(k, total) / total) ** ((rho - 1) / 4)) / 10
    return math.ceil(abs((s1 - s0) * math.sin(z) + s0))


BY_HAND = {"square_root": square_root, "doubling": doubling, "sinusoidal": sinusoidal}


def test_square_root_is_that_of_consistency_models():
    # s0 2, s1 150, K 800k: the formula in integers and float64
    steps = [0, 1, 10_000, 100_000, 400_000, 800_000]
    by_hand = [math.ceil(math.sqrt(k / 800_000 * (151**2 - 4) + 4) - 1) + 1 for k in steps]
    assert by_hand == [2, 3, 17, 54, 107, 151] == [square_root(k, 800_000) for k in steps]
    assert [int(C.square_root(k, 800_000)) for k in steps] == by_hand


def test_doubling_has_eight_equal_stages():
    assert [int(C.doubling(k * 50_000, 400_000)) for k in range(9)] == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    assert int(C.doubling(49_999, 400_000)) == 11


def test_sinusoidal_rises_and_falls():
    shares = [0, 0.2, 0.4, 0.6, 0.63, 0.8, 0.95]
    by_hand = [sinusoidal(int(s * 100_000), 100_000) for s in shares]
    assert by_hand == [20, 66, 169, 247, 250, 206, 76]
    assert [int(C.sinusoidal(int(s * 100_000), 100_000)) for s in shares] == by_hand


@pytest.mark.parametrize(
    ("name", "total", "bounds"),
    [
        ("square_root", 200_000, ()),
        ("square_root", 22797, ()),  # the formula is a whole number at every step
        ("square_root", 999, (3, 7)),
        ("doubling", 5_000, ()),
        ("doubling", 777, (3, 100)),
        ("doubling", 50, (1, 2)),
        ("sinusoidal", 200_001, ()),
        ("sinusoidal", 997, (2, 40, 3.0)),
    ],
)
def test_every_step_is_exact(name, total, bounds):
    steps = np.arange(total + 3)
    if name == "doubling":
        at = {k: doubling(k, total, *bounds) for k in range(0, total + 3, 7)}
        steps = np.array(list(at))
        exact = list(at.values())
    else:
        exact = [BY_HAND[name](int(k), total, *bounds) for k in steps]
    curriculum = getattr(C, name)
    np.testing.assert_array_equal(curriculum(steps, total, *bounds), exact)
    np.testing.assert_array_equal(jax.jit(lambda k: curriculum(k, total, *bounds))(steps), exact)


def test_steps_beyond_what_float32_can_count_stay_exact():
    total = 10**9
    thresholds = [(n * n - 4) * total // (151**2 - 4) for n in range(2, 151)]  # the last step of each number
    steps = np.array(thresholds + [t + 1 for t in thresholds])
    exact = [*range(2, 151), *range(3, 152)]
    np.testing.assert_array_equal(C.square_root(steps, total), exact)
    np.testing.assert_array_equal(jax.jit(lambda k: C.square_root(k, total))(np.int32(steps)), exact)
    far = 10**15
    assert int(C.square_root((81 - 4) * far // (151**2 - 4), far)) == 9
    assert int(C.square_root((81 - 4) * far // (151**2 - 4) + 1, far)) == 10
    assert int(C.square_root(10**40, far)) == int(C.square_root(far, far)) == 151
    with jax.enable_x64(True):
        assert int(jax.jit(lambda k: C.square_root(k, far))(np.int64((81 - 4) * far // (151**2 - 4) + 1))) == 10


@pytest.mark.parametrize("name", C.__all__)
def test_traced_steps_and_steps_beyond_the_end(name):
    curriculum = getattr(C, name)
    steps = np.arange(0, 1500, 100)
    traced = jax.jit(jax.vmap(lambda k: curriculum(k, 1000)))(steps)
    np.testing.assert_array_equal(traced, [int(curriculum(int(k), 1000)) for k in steps])
    assert (traced[11:] == traced[10]).all() and traced.min() >= 2
    assert int(curriculum(-5, 1000)) == int(jax.jit(lambda k: curriculum(k, 1000))(-5)) == int(curriculum(0, 1000))


@pytest.mark.parametrize("name", C.__all__)
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint32, np.float32, np.float16])
def test_steps_of_any_dtype(name, kind):
    curriculum = getattr(C, name)
    steps = np.array([0, 1, 7, 100], kind)
    exact = [BY_HAND[name](int(k), 1000) for k in steps]
    with jax.numpy_dtype_promotion("strict"):
        for got in (curriculum(steps, 1000), jax.jit(lambda k: curriculum(k, 1000))(steps)):
            assert got.dtype == jnp.int32
            np.testing.assert_array_equal(got, exact)
    assert int(curriculum(7.9, 1000)) == BY_HAND[name](7, 1000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0,), "total = 0"), ((10, 0), "s0 = 0"), ((10, 30, 20), "s0 = 30: must be less than s1 = 20")],
)
def test_bad_input_is_named(arguments, words):
    for name in C.__all__:
        with pytest.raises(ValueError) as error:
            getattr(C, name)(1, *arguments)
        assert words in str(error.value)


@pytest.mark.parametrize(
    "wrong", [None, "2", float("nan"), dx.schedules.edm, np.zeros(0), 1j, True, {"a": 1}, object()]
)
def test_wrong_arguments_are_refused(wrong):
    for name in C.__all__:
        right = {"step": 1, "total": 10, "s0": 2, "s1": 5, **({"rho": 7.0} if name == "sinusoidal" else {})}
        for argument in right:
            with pytest.raises(ValueError, match=rf"^{argument} = .*must"):
                getattr(C, name)(**{**right, argument: wrong})
    with pytest.raises(ValueError, match=r"rho = 1: must be finite and > 1"):
        C.sinusoidal(1, 10, rho=1)
