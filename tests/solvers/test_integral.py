"""The integral of the solvers: spaces solve the ODE, coordinates invert, weights are exact."""

import itertools
from fractions import Fraction
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from diffax.solvers import integral

SPACES = {
    "x0": integral.x0(),
    "x0 of f": integral.x0(lambda s: s**1.7, lambda s: 1.7 * s**0.7),
    "eps": integral.eps(),
    "v": integral.v(),
    "v(0.5)": integral.v(0.5),
    "flow": integral.flow(),
    "flow(2)": integral.flow(2.0),
    "log": integral.log(),
}
COORDINATES = {
    "log sigma": integral.log_sigma(),
    "sigma": integral.sigma(),
    "angle": integral.angle(),
    "angle(0.5)": integral.angle(0.5),
    "flow time": integral.flow_time(),
    "flow time(2)": integral.flow_time(2.0),
    "vp time": integral.vp_time(),
    "vp time(0.2, 15)": integral.vp_time(0.2, 15.0),
}
PAIRS = [
    ("x0", "log sigma"),
    ("x0 of f", "log sigma"),
    ("eps", "log sigma"),
    ("eps", "sigma"),
    ("eps", "vp time"),
    ("v", "angle"),
    ("v(0.5)", "angle(0.5)"),
    ("flow", "flow time"),
    ("flow(2)", "flow time(2)"),
    ("log", "log sigma"),
]
FINITE = [(space, time) for space, time in PAIRS if SPACES[space].finite and COORDINATES[time].finite]
CLASSICAL = {
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def weights(space, time, nodes, start, end):
    nodes = [np.float64(s) for s in nodes]
    return np.array(integral.weights(SPACES[space], COORDINATES[time], nodes, np.float64(start), np.float64(end)))


@pytest.mark.parametrize("name", [name for name in SPACES if name != "x0 of f"])
def test_a_space_is_the_ode_times_its_integrating_factor(name):
    # d(mu x)/dsigma = mu' x + mu (x - D) / sigma = (a x + b D) dnu/dsigma, for any x and D
    space, s, d = SPACES[name], np.geomspace(0.01, 50.0, 7), 1e-5
    slope = (space.mu(s * (1 + d)) - space.mu(s * (1 - d))) / (2 * d * s)
    a, b = (0.0, 1.0) if space.value is None else space.value(s)
    scale = space.mu(s) / s
    np.testing.assert_allclose((slope + space.mu(s) / s) / scale, space.rate(s) * a / scale, atol=1e-8)
    np.testing.assert_allclose(-space.mu(s) / s, space.rate(s) * b, rtol=1e-13)


def test_the_space_of_an_sde_holds_f_and_its_slope():
    space, s, d = SPACES["x0 of f"], np.geomspace(0.01, 50.0, 7), 1e-5
    np.testing.assert_allclose(space.mu(s), s**-1.7, rtol=1e-13)
    np.testing.assert_allclose(space.rate(s), (space.mu(s * (1 + d)) - space.mu(s * (1 - d))) / (2 * d * s), rtol=1e-8)
    assert space.value is None


@pytest.mark.parametrize("name", COORDINATES)
def test_a_coordinate_has_its_inverse_and_rate(name):
    time, s, d = COORDINATES[name], np.geomspace(0.001, 100.0, 9), 1e-5
    np.testing.assert_allclose(time.sigma(time.of(s)), s, rtol=1e-11)
    slope = (time.of(s * (1 + d)) - time.of(s * (1 - d))) / (2 * d * s)
    np.testing.assert_allclose(time.rate(s), 1 / slope, rtol=1e-7)
    assert (np.diff(time.of(s)) > 0).all()


@pytest.mark.parametrize("step", [(80.0, 57.0), (3.0, 0.4), (0.17, 0.002), (0.02, 0.019), (0.05, 2.0), (30.0, 0.01)])
@pytest.mark.parametrize(("space", "time"), PAIRS)
def test_weights_integrate_polynomials_exactly(space, time, step):
    s, t = step
    nodes = s * (s / t) ** np.array([0.0, 0.6, 1.5, 1.9])
    u = COORDINATES[time].of
    centre, spread = u(s), abs(u(nodes[2]) - u(s))
    for count in (1, 2, 3, 4):
        w = weights(space, time, nodes[:count], s, t)
        for power in range(count):

            def integrand(level, power=power):  # of log sigma
                sigma = np.exp(level)
                return ((u(sigma) - centre) / spread) ** power * SPACES[space].rate(sigma) * sigma

            # In parts, since over a wide step the integrand spans many orders of magnitude.
            levels = np.linspace(np.log(s), np.log(t), 9)
            parts = [quad(integrand, a, b, epsabs=0, epsrel=1e-13)[0] for a, b in itertools.pairwise(levels)]
            terms = w * ((u(nodes[:count]) - centre) / spread) ** power
            tolerance = (1e-9 if time.startswith("vp") else 1e-11) * (np.abs(terms).sum() + np.abs(w).sum())
            np.testing.assert_allclose(terms.sum(), sum(parts), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("space", "time"), FINITE)
def test_weights_of_a_step_to_zero(space, time):
    u, nodes = COORDINATES[time].of, np.array([0.3, 0.5, 0.9, 1.0])
    w = weights(space, time, nodes, 0.3, 0.0)
    for power in range(4):
        truth = quad(lambda s, p=power: u(s) ** p * SPACES[space].rate(s), 0.3, 0.0, epsabs=1e-15, epsrel=1e-13)[0]
        np.testing.assert_allclose(w @ u(nodes) ** power, truth, rtol=1e-10)


@pytest.mark.parametrize(("s", "t"), [(80.0, 0.002), (700.0, 1e-4), (0.17, 0.002), (0.05, 0.001)])
def test_one_value_is_weighted_by_the_length_of_the_step_however_long(s, t):
    for time in ("log sigma", "sigma", "vp time"):  # which is what makes order 1 DDIM
        np.testing.assert_allclose(weights("eps", time, [s], s, t), [t - s], rtol=1e-13)
    np.testing.assert_allclose(weights("x0", "log sigma", [s], s, t), [1 / t - 1 / s], rtol=1e-13)
    np.testing.assert_allclose(weights("v", "angle", [s], s, t), [np.arctan(t) - np.arctan(s)], rtol=1e-13)


@pytest.mark.parametrize(
    ("space", "time"), [(s, t) for s, t in PAIRS if t not in ("vp time",) and s not in ("x0 of f",)]
)
@pytest.mark.parametrize("s", [0.01, 0.5, 20.0])
@pytest.mark.parametrize("h", [1e-3, 1e-6])
def test_small_equal_steps_give_adams_bashforth(space, time, s, h):
    """In eps, v, flow and log with their own time exactly; in the exponential ones with exp(tau) as well, in Fractions.

    The sigmas themselves are rounded at 1e-16, which is 1e-10 of a step of 1e-6.
    """
    coordinate, exponential = COORDINATES[time], {"x0": 1, "eps": -1}.get(space, 0) if time == "log sigma" else 0
    step = h * coordinate.of(s) if time != "log sigma" else h
    for order, classical in CLASSICAL.items():
        nodes = coordinate.sigma(coordinate.of(s) + step * np.arange(order))
        w = weights(space, time, nodes, nodes[0], coordinate.sigma(coordinate.of(s) - step))
        expected = np.array(phi_weights(order, Fraction(step) * exponential)) if exponential else np.array(classical)
        unit = -step * coordinate.rate(s) * SPACES[space].rate(s)
        np.testing.assert_allclose(w / unit, expected, rtol=0, atol=1e-13 / h + 1e-12)


def phi_weights(order, z):
    """int_0^1 L_j(u) exp(z u) du for L_j through u = 0, -1, -2, ..., in rational numbers."""
    moments = [sum(z**k / (factorial(k) * (k + m + 1)) for k in range(12)) for m in range(order)]
    found = []
    for j in range(order):
        polynomial = [Fraction(1)]  # rising powers
        for i in range(order):
            if i != j:  # times (u + i) / (i - j)
                shifted, scaled = [Fraction(0), *polynomial], [i * c for c in polynomial] + [Fraction(0)]
                polynomial = [(a + b) / (i - j) for a, b in zip(shifted, scaled, strict=True)]
        found.append(float(sum(c * m for c, m in zip(polynomial, moments, strict=True))))
    return found


@pytest.mark.parametrize(("space", "time"), PAIRS)
def test_weights_are_differentiable_and_work_in_float32(space, time):
    nodes, s, t = [3.0, 5.0, 6.0], 3.0, 1.0

    def total(levels):
        *past, end = levels
        found = integral.weights(SPACES[space], COORDINATES[time], past, past[0], end)
        return jnp.stack(found) @ jnp.array([1.0, -2.0, 0.5])

    levels = jnp.array([*nodes, t])
    np.testing.assert_allclose(total(levels), weights(space, time, nodes, s, t) @ [1.0, -2.0, 0.5], rtol=2e-5)
    with jax.enable_x64(True):
        levels, d = np.array([*nodes, t]), 1e-6
        slopes = [
            (total(jnp.array(levels + d * e)) - total(jnp.array(levels - d * e))) / (2 * d) for e in np.eye(len(levels))
        ]
        np.testing.assert_allclose(jax.grad(total)(jnp.array(levels)), np.array(slopes), rtol=1e-6, atol=1e-8)
