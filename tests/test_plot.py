"""What the pictures hold, against formulas in numpy: the lines, the labels, the pixels."""

import subprocess
import sys

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import diffax as dx
import diffax.plot

matplotlib.use("Agg")
COSINE, FLOW, KARRAS = dx.schedules.cosine(), dx.schedules.flow(), dx.schedules.karras()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def line(ax, i=0):
    return np.asarray(ax.lines[i].get_xdata(), float), np.asarray(ax.lines[i].get_ydata(), float)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_logsnr_draws_the_schedules_on_the_axes_given():
    ax = plt.figure().add_subplot()
    assert dx.plot.logsnr({"cosine": COSINE, "flow": FLOW}, ax=ax) is ax
    u, lam = line(ax, 0)
    assert (u[0], u[-1]) == pytest.approx((1e-3, 1 - 1e-3))  # its ends are infinite
    np.testing.assert_allclose(lam, -2 * np.log(np.tan(np.pi * u / 2)), atol=2e-3)
    u, lam = line(ax, 1)
    np.testing.assert_allclose(lam, 2 * np.log((1 - u) / u), atol=2e-3)
    assert legend(ax) == ["cosine", "flow"]
    assert ax.get_xlabel().startswith("u ") and ax.get_ylabel().startswith("logSNR")


def test_a_single_schedule_has_no_legend_and_finite_ends_are_shown():
    ax = dx.plot.logsnr(KARRAS)
    u, lam = line(ax)
    assert ax.get_legend() is None
    assert (u[0], u[-1]) == (0, 1)
    sigma = (0.002 ** (1 / 7) + u * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(np.exp(-lam / 2), sigma, rtol=1e-4)
    low, high = ax.get_ylim()
    assert low < -2 * np.log(80) < -2 * np.log(0.002) < high


def test_density_draws_the_density():
    ax = dx.plot.density({"cosine": COSINE, "laplace": dx.schedules.laplace(0.5, 0.7), "edm": dx.schedules.edm()})
    formulas = [
        lambda lam: 1 / np.cosh(lam / 2) / (2 * np.pi),
        lambda lam: np.exp(-np.abs(lam - 0.5) / 0.7) / 1.4,
        lambda lam: np.exp(-(((lam - 2.4) / 2.4) ** 2) / 2) / (2.4 * np.sqrt(2 * np.pi)),
    ]
    for i, formula in enumerate(formulas):
        lam, p = line(ax, i)
        assert (np.diff(lam) >= 0).all()
        np.testing.assert_allclose(p, formula(lam), atol=1e-5)
        assert np.trapezoid(p, lam) == pytest.approx(1, abs=0.01)
    assert legend(ax) == ["cosine", "laplace", "edm"]
    assert ax.get_ylim()[1] == pytest.approx(1.06 / 1.4, rel=0.01)  # the highest peak is inside
    assert "logSNR" in ax.get_xlabel() and "density" in ax.get_ylabel()


@pytest.mark.parametrize(
    "schedule",
    [
        dx.schedules.cauchy(),
        dx.schedules.polynomial(),
        dx.schedules.linear_beta(),
        dx.schedules.zero_terminal_snr(dx.schedules.scaled_linear_betas()),
        dx.schedules.truncate(dx.schedules.laplace(), -12, 12),
        dx.schedules.mix([COSINE, KARRAS]),
        dx.schedules.align_your_steps(),
    ],
)
def test_the_limits_are_finite_and_show_the_bulk_of_any_schedule(schedule):
    p05, p95 = float(schedule(0.95)), float(schedule(0.05))
    for low, high in (dx.plot.logsnr(schedule).get_ylim(), dx.plot.density(schedule).get_xlim()):
        assert low <= p05 < p95 <= high
        assert high - low < 4 * (p95 - p05)
    bottom, top = dx.plot.density(schedule).get_ylim()
    assert bottom == 0 and 0.5 / (schedule(0.25) - schedule(0.75)) < top < 10


def test_grid_draws_the_sigmas_above_zero():
    sigmas = dx.schedules.sigmas(KARRAS, n=5)
    ax = dx.plot.grid({"karras": sigmas, "halves": [8, 4, 2, 1]})
    step, sigma = line(ax, 0)
    np.testing.assert_array_equal(step, np.arange(5))  # the sixth sigma is 0
    ramp = 80 ** (1 / 7) + np.arange(5) / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    np.testing.assert_allclose(sigma, ramp**7, rtol=1e-4)
    np.testing.assert_array_equal(line(ax, 1)[1], [8, 4, 2, 1])
    assert ax.get_yscale() == "log" and "not drawn" in ax.get_xlabel()
    assert "not drawn" not in dx.plot.grid([8.0, 4.0, 2.0]).get_xlabel()
    with pytest.raises(ValueError, match=r"must be \[n \+ 1\]"):
        dx.plot.grid(3.0)


def test_effective_draws_weight_times_density_over_snr():
    v, flow = (dx.weightings.target(p) for p in (dx.preconditioning.v(), dx.preconditioning.flow()))
    recipes = {"v": (COSINE, v), "flow": (FLOW, flow), "edm": (dx.schedules.edm(), dx.weightings.edm(0.5))}
    ax = dx.plot.effective(recipes)
    for i in (0, 1):  # one objective
        lam, weight = line(ax, i)
        np.testing.assert_allclose(weight, np.exp(-lam / 2), rtol=1e-3)
    lam, weight = line(ax, 2)
    shape = np.exp(-(((lam - 2.4) / 2.4) ** 2) / 2) * (1 + 4 * np.exp(-lam))
    np.testing.assert_allclose(weight, shape / (np.exp(-0.5) * 5), rtol=1e-3)
    assert legend(ax) == list(recipes)
    assert ax.get_yscale() == "log" and "logSNR = 0" in ax.get_ylabel()
    lam, weight = line(dx.plot.effective(recipes, at=2.0), 0)
    np.testing.assert_allclose(weight, np.exp(1 - lam / 2), rtol=1e-3)


def test_effective_says_which_recipe_cannot_be_normalised():
    clean = dx.schedules.truncate(COSINE, 1.0, 9.0)
    with pytest.raises(ValueError, match=r"'clean only' has the weight 0[.]0 at logSNR = 0"):
        dx.plot.effective({"clean only": (clean, dx.weightings.snr())})


def test_noised_draws_alpha_x0_plus_sigma_eps():
    x0 = np.linspace(-1, 1, 64 * 64).reshape(64, 64)
    ax = dx.plot.noised(x0, COSINE, n=5, key=jax.random.key(3))
    panels = [np.asarray(image.get_array(), float) for image in ax.images]
    assert [p.shape for p in panels] == [(64, 64)] * 5
    np.testing.assert_allclose(panels[0], x0, atol=1e-6)  # u = 0, infinitely clean
    eps = panels[-1]  # u = 1, noise alone
    assert (eps.mean(), eps.std()) == pytest.approx((0, 1), abs=0.05)
    for u, panel in zip(np.linspace(0, 1, 5), panels, strict=True):
        np.testing.assert_allclose(panel, np.cos(np.pi * u / 2) * x0 + np.sin(np.pi * u / 2) * eps, atol=1e-5)
    above = [label.get_text() for label in ax.get_xticklabels()]
    assert above == ["+∞", "+1.8", "+0.0", "\N{MINUS SIGN}1.8", "\N{MINUS SIGN}∞"]
    assert ax.get_xlabel() == "logSNR"
    other = dx.plot.noised(x0, COSINE, n=5, key=jax.random.key(4)).images[-1].get_array()
    assert abs(np.corrcoef(eps.ravel(), np.ravel(other))[0, 1]) < 0.1


def test_noised_takes_batches_colours_and_levels():
    x0 = np.random.default_rng(0).uniform(-1, 1, (2, 16, 12, 3))
    ax = dx.plot.noised(x0, KARRAS, u=[0.0, 0.3, 0.9])
    panels = [np.asarray(image.get_array(), float) for image in ax.images]
    assert [p.shape for p in panels] == [(16, 12, 3)] * 6
    assert min(p.min() for p in panels) >= 0 and max(p.max() for p in panels) <= 1
    low, high = x0.min(), x0.max()
    for row in (0, 1):
        np.testing.assert_allclose(panels[3 * row], (x0[row] - low) / (high - low), atol=0.01)
    assert np.abs(panels[2] - panels[5]).mean() > 0.1  # each image has its own noise
    boxes = [image.get_extent() for image in ax.images]
    assert len({(left, top) for left, _, _, top in boxes}) == 6
    with pytest.raises(ValueError, match=r"x0 has shape \(4, 4, 2\)"):
        dx.plot.noised(np.zeros((4, 4, 2)), COSINE)


def test_overview_has_three_panels_and_one_legend():
    figure = dx.plot.overview({"cosine": COSINE, "karras": KARRAS}, n=12)
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 2]
    assert [ax.get_legend() for ax in figure.axes] == [None] * 3
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["cosine", "karras"]
    cosine, karras = (line(figure.axes[2], i)[1] for i in (0, 1))
    assert len(cosine) == len(karras) == 12 and (np.diff(cosine) < 0).all()
    np.testing.assert_allclose(karras[[0, -1]], [80, 0.002], rtol=1e-4)
    assert not dx.plot.overview(COSINE).legends


def test_no_text_overlaps_the_panels():
    figure = dx.plot.overview({f"a schedule named {i}": dx.schedules.laplace(i, 1.0) for i in range(9)})
    figure.canvas.draw()
    key = figure.legends[0].get_window_extent()
    assert not any(key.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    assert all(figure.bbox.containsx(x) for x in key.intervalx)
    ax = dx.plot.logsnr({f"{i}": dx.schedules.laplace(i, 1.0) for i in range(9)})
    ax.figure.canvas.draw()
    assert not ax.get_legend().get_window_extent().overlaps(ax.get_window_extent())


def test_matplotlib_is_imported_when_something_is_drawn_and_its_absence_is_one_sentence():
    code = """
import sys
import diffax as dx, diffax.plot
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
try:
    dx.plot.logsnr(dx.schedules.cosine())
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "diffax.plot draws with matplotlib: pip install 'diffax[plot]'\n"


def test_several_may_be_a_list_with_labels_and_the_legend_left_out():
    cosine, flow = dx.schedules.cosine(), dx.schedules.flow()
    for ax in (
        dx.plot.logsnr([cosine, flow], labels=["a", "b"]),
        dx.plot.density({"x": cosine, "y": flow}, labels=("a", "b")),
        dx.plot.grid([[3, 2, 0], np.array([4.0, 1.0])], labels=["a", "b"]),
        dx.plot.effective([(cosine, dx.weightings.edm()), (flow, dx.weightings.snr())], labels=["a", "b"]),
    ):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert dx.plot.logsnr(cosine, labels="a").get_legend().get_texts()[0].get_text() == "a"
    assert dx.plot.logsnr([cosine, flow], labels=["a", "b"], legend=False).get_legend() is None
    assert dx.plot.overview([cosine, flow], 5, labels=["a", "b"], legend=False).legends == []


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: dx.plot.logsnr(dx.schedules.cosine), "schedules = cosine: is a function: did you forget"),
        (lambda: dx.plot.density("cosine"), "schedules = 'cosine': must be a Schedule"),
        (lambda: dx.plot.logsnr([dx.schedules.cosine()]), "must be a Schedule"),
        (lambda: dx.plot.logsnr([dx.schedules.cosine()], labels=["a", "b"]), "must be 1 different strings"),
        (lambda: dx.plot.logsnr([dx.schedules.cosine()] * 2, labels=["a", "a"]), "must be 2 different strings"),
        (lambda: dx.plot.logsnr(dx.schedules.cosine(), labels=3), "labels = 3: must be 1 different strings"),
        (lambda: dx.plot.logsnr(dx.schedules.cosine(), "here"), "ax = 'here': must be an Axes"),
        (lambda: dx.plot.grid("karras"), "sigmas = 'karras': must lie in [0, inf]"),
        (lambda: dx.plot.effective(dx.schedules.cosine()), "must be (schedule, weighting)"),
        (lambda: dx.plot.noised(np.ones((4, 4)), dx.schedules.cosine), "schedule = cosine: is a function"),
        (lambda: dx.plot.noised(np.full((4, 4), np.nan), dx.schedules.cosine()), "must be finite"),
        (lambda: dx.plot.overview(dx.schedules.cosine(), 0), "n = 0: must be an integer >= 1"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, words):
    with pytest.raises(ValueError) as error:
        draw()
    assert words in str(error.value)
