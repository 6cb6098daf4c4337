"""What every schedule owes, whatever it was made by: kinds of arguments, ends, dtypes, jit; and wrong arguments."""

import inspect
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

S = dx.schedules
INF = float("inf")


def logistic(lam):
    return jax.nn.sigmoid(-lam), jax.nn.sigmoid(lam)


STATE = dx.adaptive.Adaptive(jnp.float32(np.linspace(0.1, 2, 16)), jnp.ones(16, jnp.float32))


# Each is made anew, so that it can be made under jit.
ALL = {
    "cosine": S.cosine,
    "cosine 0.008": lambda: S.cosine(0.008),
    "cosine_shifted": lambda: S.cosine_shifted(1.5),
    "cosine_scaled": S.cosine_scaled,
    "edm": S.edm,
    "logit_normal": lambda: S.logit_normal(0.3, 1.0, 3.0),
    "laplace": S.laplace,
    "cauchy": S.cauchy,
    "flow": lambda: S.flow(3.0),
    "uniform": S.uniform,
    "geometric": S.geometric,
    "karras": S.karras,
    "polynomial": S.polynomial,
    "linear_beta": S.linear_beta,
    "sigmoid": S.sigmoid,
    "shift": lambda: S.shift(S.cosine(), -1.4),
    "scale": lambda: S.scale(S.laplace(), 2.0),
    "power": lambda: S.power(S.cosine(), 0.3),
    "truncate": lambda: S.truncate(S.cosine(), -12, 10),
    "mix": lambda: S.mix([S.karras(), S.flow()], [1.0, 3.0]),
    "mix of bounded": lambda: S.mix([S.karras(), S.uniform()]),
    "beta": lambda: S.beta(S.karras()),
    "interpolate": lambda: S.interpolate(S.flow(), S.karras(), 0.4),
    "anneal 0": lambda: S.anneal(S.karras(), S.flow(), 10)(0),
    "anneal 3": lambda: S.anneal(S.karras(), S.uniform(), 10)(3),
    "anneal 10": lambda: S.anneal(S.flow(), S.karras(), 10)(10),
    "zero_terminal_snr": lambda: S.zero_terminal_snr(S.linear_betas()),
    "zero_terminal_snr cosine": lambda: S.zero_terminal_snr(S.truncate(S.cosine(), -9, 25)),
    "linear_betas": S.linear_betas,
    "scaled_linear_betas": S.scaled_linear_betas,
    "align_your_steps": S.align_your_steps,
    "tabulated": lambda: S.tabulated([0.01, 0.5, 30.0]),
    "learned": lambda: S.learned(S.learned_init(jax.random.key(0))),
    "from_tails": lambda: S.from_tails(logistic),
    "from_quantile": lambda: S.from_quantile(lambda u, v: 10 * v - 10 * u),
    "adaptive": lambda: dx.adaptive.schedule(STATE, S.truncate(S.cosine(), -8, 8)),
}
INNER = np.float32([1e-6, 1e-3, 0.2, 0.5, 0.7, 0.999, 1 - 2**-20])
LEVELS = np.float32([-8, -3, 0.25, 2, 7])


@pytest.mark.parametrize("name", ALL)
def test_ends_and_infinities_have_their_limits(name):
    schedule, far = ALL[name](), jnp.float32([INF, -INF, 1e30, -1e30])
    lam, (u, v), density, slopes = jax.jit(
        lambda u: (schedule(u), schedule.tails(far), schedule.density(far), jax.vmap(jax.grad(schedule))(u[2:-2]))
    )(np.concatenate([[0], INNER, [1]]))
    assert not np.isnan(lam).any() and np.isfinite(lam[1:-1]).all()
    assert (np.diff(lam) <= 0).all() and (np.diff(lam[2:-2]) < 0).all()
    np.testing.assert_allclose(u, [0, 1, 0, 1], atol=2e-7)
    np.testing.assert_allclose(v, [1, 0, 1, 0], atol=2e-7)
    np.testing.assert_array_equal(density, 0)
    assert np.isfinite(slopes).all() and (slopes < 0).all()


@pytest.mark.parametrize("name", ALL)
def test_takes_numbers_lists_and_arrays(name):
    """Inside a jitted function numbers are numbers; it is compiled once, and not call by call."""
    schedule = ALL[name]()

    @jax.jit
    def called():
        return (
            [schedule.density(given) for given in ([0.25, 2], np.array([0.25, 2]), 2, np.float64(2), jnp.bfloat16(2))],
            [schedule([0.25, 1])[0], schedule(0.25), schedule.quantile(0.25, 0.75)],
            [schedule.tails(1)[0], schedule.inverse(np.float16(1))],
        )

    density, lam, u = called()
    exact, standard = schedule.density(jnp.float32([0.25, 2])), jnp.result_type(float)
    assert [got.dtype for got in density] == [standard] * 4 + [jnp.float32]
    for got, wanted in zip(density, (exact, exact, exact[1], exact[1], exact[1]), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(lam, lam[0], rtol=1e-5)
    np.testing.assert_allclose(u, u[0], rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_x64_with_strict_promotion(name):
    """The result has the dtype of the argument, and float64 ones tell how right the float32 ones are."""

    def made(dtype):
        schedule = ALL[name]()
        every = lambda u, lam: (schedule(u), schedule.inverse(lam), schedule.density(lam), jax.grad(schedule)(u[3]))
        return jax.jit(every)(jnp.asarray(INNER[1:-1], dtype), jnp.asarray(LEVELS, dtype))

    plain = made(np.float32)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        for dtype in (np.float32, np.float64):
            wide = made(dtype)
            assert all(w.dtype == dtype for w in wide)
            for got, exact, close in zip(plain, wide, (2e-5, 2e-5, 2e-3, 2e-2), strict=True):
                np.testing.assert_allclose(got, exact, rtol=close, atol=min(close, 1e-3))


@pytest.mark.parametrize("name", [n for n in ALL if n != "learned"])  # whose random numbers are drawn under jit
def test_made_under_jit_it_is_a_constant_and_the_same(name):
    """A grid that jit turned into traced values would be taken for one that is being learned."""

    def grid():
        return S.sigmas(S.truncate(ALL[name](), -9, 9), 6)

    def inside(x):
        sigmas = grid()
        assert isinstance(sigmas, np.ndarray) and isinstance(sigmas[:3], np.ndarray)
        return x * sigmas

    np.testing.assert_allclose(jax.jit(inside)(1.0), grid(), rtol=1e-6)


# ---- wrong arguments ------------------------------------------------------------------------------------------------

WRONG = {
    "None": None,
    "string": "2",
    "nan": float("nan"),
    "function": S.edm,
    "tuple": (1.0, 2.0),
    "empty": np.zeros((0,)),
    "complex": 1 + 2j,
    "bool": True,
    "dict": {"a": 1},
    "object": object(),
    "shape": np.ones((3, 2)),
    "huge": 10**400,
}
PARAMS = S.learned_init(jax.random.key(0))
CALLS = {
    **{name: {} for name in ("cosine", "cosine_shifted", "cosine_scaled", "edm", "logit_normal", "laplace", "cauchy")},
    **{name: {} for name in ("flow", "uniform", "geometric", "karras", "polynomial", "linear_beta", "sigmoid")},
    **{name: {} for name in ("linear_betas", "scaled_linear_betas", "align_your_steps")},
    "shift": {"schedule": S.edm(), "by": 1.0},
    "scale": {"schedule": S.edm(), "by": 2.0},
    "power": {"schedule": S.edm(), "exponent": 2.0},
    "truncate": {"schedule": S.edm(), "logsnr_min": -5.0, "logsnr_max": 5.0},
    "mix": {"schedules": [S.edm(), S.karras()]},
    "beta": {"schedule": S.edm()},
    "interpolate": {"a": S.edm(), "b": S.flow(), "weight": 0.5},
    "anneal": {"a": S.edm(), "b": S.flow(), "over": 10},
    "Curriculum": {"at": lambda step: S.edm()},
    "zero_terminal_snr": {"schedule": S.karras()},
    "tabulated": {"sigmas": [0.1, 1.0]},
    "from_betas": {"betas": [0.1, 0.1]},
    "from_tails": {"tails": logistic},
    "from_quantile": {"quantile": lambda u, v: v - u},
    "Schedule": {"quantile": lambda u, v: v - u, "tails": logistic, "density": lambda lam: lam},
    "sigmas": {"schedule": S.karras(), "n": 5},
    "learned_init": {"key": jax.random.key(0)},
    "learned": {"params": PARAMS},
    "per_pixel": {"params": PARAMS, "rate": jnp.ones(3)},
    "per_pixel_regulariser": {"schedule": S.uniform(), "u": 0.5},
    "logsnr_from_sigma": {"sigma": 1.0},
    "sigma_from_logsnr": {"logsnr": 1.0},
}
FINE = {  # of the wrong ones, those that are right there
    ("mix", "weights", "None"),
    ("mix", "weights", "tuple"),
    ("from_tails", "bracket", "None"),
    ("from_tails", "density", "None"),
    ("from_quantile", "bracket", "None"),
    ("sigmas", "final", "None"),
    ("tabulated", "sigmas", "tuple"),
    ("logsnr_from_sigma", "sigma", "tuple"),
    ("sigma_from_logsnr", "logsnr", "tuple"),
    ("per_pixel", "rate", "tuple"),
    # parameters may be arrays, and then the schedule is one for each entry
    *((name, argument, "shape") for name in CALLS for argument in inspect.signature(getattr(S, name)).parameters),
    # any function is one of these, and what it gives is checked when it is called
    ("Curriculum", "at", "function"),
    ("learned", "train_ends", "bool"),
    *(("Schedule", argument, "function") for argument in ("quantile", "tails", "density")),
}


def refused(call, argument):
    """Raise AssertionError unless the call fails with a sentence of diffax that names the argument."""
    with pytest.raises(ValueError) as error:
        call()
    where = traceback.extract_tb(error.value.__traceback__)[-1].filename
    assert "/diffax/" in where, where
    words = str(error.value)
    assert argument in words and "must" in words and "\n" not in words, words


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_refused(name, kind):
    function, right = getattr(S, name), CALLS[name]
    function(**right)
    for argument in inspect.signature(function).parameters:
        if (name, argument, kind) not in FINE:
            refused(lambda a=argument: function(**{**right, a: WRONG[kind]}), argument)


@pytest.mark.parametrize("kind", [k for k in WRONG if k not in ("tuple", "shape", "bool")] + ["bool"])
def test_wrong_levels_are_refused(kind):
    schedule = S.truncate(S.cosine(), -5, 5)
    refused(lambda: schedule(WRONG[kind]), "u")
    refused(lambda: schedule.quantile(WRONG[kind], 0.5), "u")
    refused(lambda: schedule.quantile(0.5, WRONG[kind]), "v")
    for call in (schedule.inverse, schedule.density, schedule.tails):
        refused(lambda c=call: c(WRONG[kind]), "logsnr")
    refused(lambda: S.anneal(S.edm(), S.flow(), 10)(WRONG[kind]), "step")


@pytest.mark.parametrize("u", [-0.1, 1.1, [0.5, 2.0], INF, -INF])
def test_u_outside_its_range_is_refused(u):
    with pytest.raises(ValueError, match=r"u = .*: must lie in \[0, 1\]"):
        S.edm()(u)
    assert S.karras()(1 + 1e-16) == S.karras()(1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.sigmas(S.karras, 5), "schedule = karras: is a function: did you forget the parentheses?"),
        (lambda: S.sigmas(5, 5), "schedule = 5: must be a Schedule such as dx.schedules.karras()"),
        (lambda: S.mix([S.cosine]), "schedules[0] = cosine: is a function: did you forget the parentheses?"),
        (lambda: S.mix(S.cosine()), "schedules = Schedule("),
        (lambda: S.mix(S.cosine), "must be a list of schedules such as"),
        (lambda: S.shift(S.cosine, 1), "schedule = cosine: is a function: did you forget"),
        (lambda: S.truncate(S.cosine, -1, 1), "schedule = cosine: is a function: did you forget"),
        (lambda: S.anneal(S.cosine(), S.edm, 10), "b = edm: is a function: did you forget"),
        (lambda: S.Curriculum(lambda step: step)(3), "at(step) = 3: must be a Schedule"),
        (lambda: S.Schedule(lambda u, v: None, logistic, logistic)(0.5), "quantile gave None: must give an array"),
        (lambda: S.Schedule(lambda u, v: u, lambda lam: lam, logistic).inverse(0.5), "must give a pair of arrays"),
        (lambda: S.learned(PARAMS._replace(height=jnp.ones(3))), "params.height has shape (3,)"),
        (lambda: S.learned((1, 2)), "params = (1, 2): must be a Monotone such as dx.schedules.learned_init(key)"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_a_schedule_is_a_value():
    """Its fields may be replaced, and it compares and hashes by them."""
    import dataclasses

    base = S.edm()
    doubled = dataclasses.replace(base, density=lambda lam: 2 * base.density(lam))
    assert doubled.density(0.3) == 2 * base.density(0.3) and doubled(0.3) == base(0.3)
    assert dataclasses.replace(base) == base and hash(dataclasses.replace(base)) == hash(base) and doubled != base
