"""Pictures of schedules, densities, grids, recipes and noised images. Needs matplotlib: pip install 'diffax[plot]'.

Each function draws on the Axes it is given, or on a new one, and returns it. It takes one object, or several as a dict
or as a list with `labels`: `logsnr(cosine())`, `logsnr({"cosine": cosine(), "flow": flow()})`, `logsnr([cosine(),
flow()], labels=["cosine", "flow"])`. `legend=False` leaves the legend out. A schedule that is infinite at an end is
shown for u in [0.001, 0.999], and of heavy tails only the part near the middle.

All raise ValueError for what is not as described, and ImportError without matplotlib.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, noise, weightings
from diffax.schedules import Schedule, truncate
from diffax.schedules import sigmas as sigmas_of
from diffax.weightings import Weighting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Several = Any
"""One object, a dict of named ones, or a list of them with labels."""
Labels = str | Sequence[str] | None

__all__ = ["density", "effective", "grid", "logsnr", "noised", "overview"]

_END = 1e-3  # how near to an infinite end, in u
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
_LINES = ("-", "--", "-.", ":")  # so that curves that coincide are both seen


def logsnr(schedules: Several, ax: "Axes | None" = None, *, labels: Labels = None, legend: bool = True) -> "Axes":
    """logSNR over u."""
    named = _schedules(schedules, labels)
    ax = _axes(ax)
    curves = {name: _curve(schedule) for name, schedule in named.items()}
    for (name, curve), style in zip(curves.items(), _styles(), strict=False):
        ax.plot(curve.u, curve.logsnr, label=name, **style)
    low, high = _hull(curves.values())
    margin = 0.04 * (high - low)
    ax.set(xlim=(0, 1), ylim=(low - margin, high + margin))
    ax.set(xlabel="u  (0 clean, 1 noise)", ylabel=r"logSNR  $= 2\,\log(\alpha/\sigma_t)$")
    return _finish(ax, curves, legend)


def density(schedules: Several, ax: "Axes | None" = None, *, labels: Labels = None, legend: bool = True) -> "Axes":
    """The density p(logSNR): where training looks when u is uniform."""
    named = _schedules(schedules, labels)
    ax = _axes(ax)
    curves = [_curve(schedule) for schedule in named.values()]
    low, high = _hull(curves)
    top = 0.0
    for (name, schedule), curve, style in zip(named.items(), curves, _styles(), strict=False):
        # Points fine where the schedule has its mass, and over all that is shown.
        lam = np.sort(np.concatenate([np.linspace(low, high, 501), np.clip(curve.logsnr, low, high)]))
        p = _numpy(schedule.density, lam)
        ax.plot(lam, p, label=name, **style)
        # A density may be infinite at an end (`polynomial`): show five times the mean height of its middle half.
        top = max(top, min(np.nanmax(p), 5 * 0.5 / (curve.at(0.25) - curve.at(0.75))))
    ax.set(xlim=(low, high), ylim=(0, 1.06 * top))
    ax.set(xlabel="logSNR  (noise left, clean right)", ylabel="density p, per unit of logSNR")
    return _finish(ax, named, legend)


def grid(sigmas: Several, ax: "Axes | None" = None, *, labels: Labels = None, legend: bool = True) -> "Axes":
    """Sampling grids: sigma on a log scale over the step. A last sigma of 0 has no place there and is not drawn."""
    named = {name: _levels(values) for name, values in _named(sigmas, labels).items()}
    ax = _axes(ax)
    steps, zero = 1, False
    for (name, levels), style in zip(named.items(), _styles(), strict=False):
        drawn = levels > 0
        steps, zero = max(steps, levels.size - 1), zero or not drawn.all()
        marks: dict[str, Any] = {"marker": "o", "markersize": 4 if levels.size < 41 else 2}
        ax.plot(np.arange(levels.size)[drawn], levels[drawn], label=name, **style, **marks)
    ax.set_yscale("log")
    ax.set_xlim(-0.02 * steps, 1.02 * steps)
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="step" + (r"  (the last one, to $\sigma = 0$, is not drawn)" if zero else ""))
    ax.set(ylabel=r"noise level $\sigma = \sigma_t/\alpha$")
    return _finish(ax, named, legend)


def effective(
    recipes: Several,
    ax: "Axes | None" = None,
    *,
    at: float = 0.0,
    labels: Labels = None,
    legend: bool = True,
) -> "Axes":
    """What recipes (schedule, weighting) ask for: `weightings.effective` on a log scale, each divided by its value at
    logSNR `at`, so that recipes that ask for the same coincide.

    Raises ValueError where a recipe gives no weight to logSNR `at`.
    """
    _check.finite("at", at)
    named = {name: _recipe(recipe) for name, recipe in _named(recipes, labels).items()}
    ax = _axes(ax)
    low, high = _hull([_curve(schedule) for schedule, _ in named.values()])
    lam = np.linspace(low, high, 501)
    tallest = 1.0
    for (name, (schedule, weighting)), style in zip(named.items(), _styles(), strict=False):
        weight = weightings.effective(schedule, weighting)
        unit = float(weight(at))
        if not (np.isfinite(unit) and unit > 0):
            raise ValueError(f"recipe {name!r} has the weight {unit} at logSNR = {at}: choose another `at`")
        relative = _numpy(weight, lam) / unit
        ax.plot(lam, np.where(relative > 0, relative, np.nan), label=name, **style)
        tallest = max(tallest, np.max(relative[np.isfinite(relative)], initial=1.0))
    ax.set_yscale("log")
    ax.set(xlim=(low, high), ylim=(1e-4, 3 * min(tallest, 1e4)))
    ax.set(xlabel="logSNR  (noise left, clean right)", ylabel=f"weight of the eps error\n(1 at logSNR = {at:g})")
    return _finish(ax, named, legend)


def noised(
    x0: ArrayLike,
    schedule: Schedule,
    n: int = 8,
    *,
    key: Array | None = None,
    u: ArrayLike | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Images x_t = alpha x_0 + sigma_t eps (alpha^2 + sigma_t^2 = 1) at n even u from 0 to 1, their logSNR above.

    Args:
      x0: an image [height, width] or [height, width, channels], or a batch [batch, height, width, channels], a row
        for each; 1 or 3 channels. Its least value is drawn black and its greatest white (by channel if coloured).
      schedule: which logSNR each u has.
      n: how many levels.
      key: of the noise, jax.random.key(0) by default. An image has the same noise at all levels.
      u: [n] in [0, 1], the levels to show instead of even ones.
      ax: an Axes to draw on. It holds one image per panel, row by row.

    Raises: ValueError for an x0 of another shape.
    """
    _check.instance("schedule", schedule, Schedule, "dx.schedules.cosine()")
    _check.whole("n", n)
    _check.finite("x0", x0)
    if key is not None:
        _check.key("key", key)
    images = jnp.asarray(x0, jnp.float32)
    images = images[..., None] if images.ndim == 2 else images
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"x0 has shape {jnp.shape(x0)}: must be an image, with 1 or 3 channels last")
    if u is not None:
        _check.between("u", u, 0, 1)
    levels = np.linspace(0, 1, n) if u is None else np.ravel(np.asarray(u, np.float64))
    lam = schedule(levels)
    rows, height, width, channels = images.shape
    eps = noise.normal(jax.random.key(0) if key is None else key, jnp.arange(rows), images.shape[1:])
    alpha, sigma_t = (jnp.sqrt(jax.nn.sigmoid(s * lam))[:, None, None, None] for s in (1, -1))
    low, high = float(images.min()), float(images.max())
    low, high = (low, high) if low < high else (low - 1, high + 1)

    across, down = 1.06 * width, 1.06 * height
    ax = _axes(ax, (1.25 * len(levels), 1.25 * rows * height / width + 0.45))
    for row in range(rows):
        x_t = np.asarray(alpha * images[row] + sigma_t * eps[row])
        for column, panel in enumerate(x_t if channels == 1 else np.clip((x_t - low) / (high - low), 0, 1)):
            left, top = column * across, row * down
            ax.imshow(
                panel[..., 0] if channels == 1 else panel,
                extent=(left, left + width, top + height, top),
                cmap="gray",
                vmin=low,
                vmax=high,
                interpolation="nearest",
            )
    ax.set(xlim=(0, len(levels) * across - 0.06 * width), ylim=(rows * down - 0.06 * height, 0))
    ax.set_xticks([width / 2 + i * across for i in range(len(levels))], [_text(value) for value in np.asarray(lam)])
    ax.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.set_yticks([])
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("logSNR")
    ax.spines[:].set_visible(False)
    return ax


def overview(schedules: Several, n: int = 20, *, labels: Labels = None, legend: bool = True) -> "Figure":
    """A figure of three panels: `logsnr`, `density`, and the `grid` of n steps (of the part shown, if infinite)."""
    _check.whole("n", n)
    named = _schedules(schedules, labels)
    figure, axes = _pyplot().subplots(1, 3, figsize=(13, 4), layout="constrained")
    logsnr(named, axes[0]).set_title("schedule")
    density(named, axes[1]).set_title("training: where it looks")
    grid({name: sigmas_of(_bounded(s), n) for name, s in named.items()}, axes[2]).set_title(f"sampling: {n} steps")
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    if legend and any(named):
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("diffax.plot draws with matplotlib: pip install 'diffax[plot]'") from error
    return plt


def _axes(ax: "Axes | None", size: tuple[float, float] = (6.4, 4.0)) -> "Axes":
    if ax is not None and not hasattr(ax, "plot"):
        raise ValueError(f"ax = {_check.shown(ax)}: must be an Axes of matplotlib, or None for a new one")
    return _pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _named(given: Any, labels: Labels) -> dict[str, Any]:
    """A single object is one without a name."""
    if labels is None:
        return dict(given) if isinstance(given, Mapping) else {"": given}
    if isinstance(labels, str):
        return {labels: given}
    values = list(given.values() if isinstance(given, Mapping) else given) if hasattr(given, "__iter__") else [given]
    names: list[Any] = list(labels) if hasattr(labels, "__iter__") else [labels]
    if len(names) != len(values) or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"labels = {_check.shown(labels)}: must be {len(values)} different strings, one for each object"
        )
    return dict(zip(names, values, strict=True))


def _schedules(given: Any, labels: Labels) -> dict[str, Schedule]:
    example = "dx.schedules.cosine()"
    return {name: _check.instance("schedules", s, Schedule, example) for name, s in _named(given, labels).items()}


def _levels(sigmas: Any) -> np.ndarray:
    _check.between("sigmas", sigmas, 0, np.inf)
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or levels.size < 2:
        raise ValueError(f"sigmas has shape {levels.shape}: must be [n + 1] with n >= 1")
    return levels


def _recipe(given: Any) -> tuple[Schedule, Weighting]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"recipe = {_check.shown(given)}: must be (schedule, weighting)")
    schedule, weighting = given
    _check.instance("schedule", schedule, Schedule, "dx.schedules.cosine()")
    return schedule, _check.instance("weighting", weighting, Weighting, "dx.weightings.edm()")


def _styles() -> Iterator[dict[str, Any]]:
    for i in range(len(_COLOURS) * len(_LINES)):
        yield {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i % len(_LINES)], "linewidth": 1.8}


def _finish(ax: "Axes", named: Mapping[str, Any], legend: bool) -> "Axes":
    ax.grid(True, color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend and any(named):
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(named) > 6 else {"loc": "best"}
        ax.legend(framealpha=0.85, edgecolor="none", fontsize="small", **beside)
    return ax


def _numpy(function: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(function)(jnp.asarray(x)), np.float64)  # jitted: bisections compile once


class _Curve(NamedTuple):
    """A schedule at even u from end to end, or nearly so where an end is infinite."""

    u: np.ndarray
    logsnr: np.ndarray

    def at(self, u: float) -> float:
        return float(np.interp(u, self.u, self.logsnr))


def _curve(schedule: Schedule) -> _Curve:
    u = np.concatenate([[0, _END], np.linspace(0, 1, 501)[1:-1], [1 - _END, 1]])
    lam = _numpy(schedule, u)
    return _Curve(u[np.isfinite(lam)], lam[np.isfinite(lam)])


def _hull(curves: Iterable[_Curve]) -> tuple[float, float]:
    """The logSNR to show: all, but of heavy tails no more than 1.5 times the 5 to 95 % range, to each side."""
    lows, highs = [], []
    for curve in curves:
        reach = 1.5 * (curve.at(0.05) - curve.at(0.95))
        lows.append(max(curve.logsnr[-1], curve.at(0.5) - reach))
        highs.append(min(curve.logsnr[0], curve.at(0.5) + reach))
    return float(min(lows)), float(max(highs))


def _bounded(schedule: Schedule) -> Schedule:
    """The schedule itself if its ends are finite, or else the part of it that is shown."""
    curve = _curve(schedule)
    return schedule if (curve.u[0], curve.u[-1]) == (0, 1) else truncate(schedule, *_hull([curve]))


def _text(value: float) -> str:
    """One decimal, with the sign, which is typeset."""
    shown = f"{round(value, 1) + 0.0:+.1f}" if np.isfinite(value) else f"{value:+}".replace("inf", "∞")
    return shown.replace("-", "\N{MINUS SIGN}")
