"""Solvers under classifier-free guidance, where the ODE is stiff: exact conditional and unconditional mixtures.

A target is D_all + scale (D_some - D_all), the guided denoiser of a mixture of Gaussians conditioned on some of its
components. Errors are measured as for the other targets (`experiments/bench/targets.py`), from the solution of the
guided ODE itself, on `dx.grids.plain`. The thresholds of `dx.solvers.default` were chosen on other mixtures than these.
"""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax as dx
from experiments.bench import common, ours, targets
from experiments.bench.targets import Mixture, Target, posterior_mean

__all__ = ["NAMES", "NFE", "SCALES", "SOLVERS", "YARDSTICK", "errors", "load", "plot", "summary"]

SCALES = (1.0, 3.0, 7.5, 15.0)
NFE = (6, 8, 10, 12, 15, 20, 30)
YARDSTICK = ("euler", "dpmpp_2m", "adams_bashforth(4)")
"""The best of these in each cell, picked with hindsight, is what the others are compared with."""
SOLVERS: dict[str, dx.solvers.Solver] = {
    "default": dx.solvers.default(),
    "euler": dx.solvers.euler(),
    "dpmpp_2m": dx.solvers.dpmpp_2m(),
    "adams_bashforth(4)": dx.solvers.adams_bashforth(4, "flow", bootstrap=False, sigma_data=2.0),
    "unipc(3)": dx.solvers.unipc(3),
    "deis(3)": dx.solvers.deis(3),
    "dpmpp_3m": dx.solvers.dpmpp_3m(),
}


def load(name: str, scale: float) -> Target:
    """The guided target. Raises ValueError for an unknown name."""
    if name not in _MAKERS:
        raise ValueError(f"target {name!r}: must be one of {', '.join(NAMES)}")
    title, mixture, some = _MAKERS[name]()
    weights = mixture.log_weights
    part = Mixture(*(None if a is None else a[some] if np.ndim(a) else a for a in mixture))

    def denoise(x: Any, sigma: Any) -> Any:
        wide = x.astype(jnp.float64 if jax.config.read("jax_enable_x64") else x.dtype)
        every, few = (
            posterior_mean(jnp, jax.tree.map(lambda a: jnp.asarray(a, wide.dtype), m), wide, sigma)
            for m in (mixture, part)
        )
        return (every + scale * (few - every)).astype(x.dtype)

    made_of = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in (*part[:3], *mixture[:3], scale)))
    shape = mixture.means.shape[1:]
    assert len(weights) > len(part.log_weights)
    return Target(f"{name}-{scale:g}", title, shape, 64, None, denoise, made_of.hexdigest(), steps=2048)


def errors(target: Target, end: np.ndarray, nfe: int) -> dict[str, dict[str, float]]:
    """{solver: {"mean", "median"}} on the plain grid."""
    with jax.enable_x64(True):
        run = ours.sampler(target.denoiser())
        ends = {name: run(solver, dx.grids.plain(nfe), target.start()) for name, solver in SOLVERS.items()}
    return {name: common.errors(found, end) for name, found in ends.items()}


Cells = dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]
"""{target: {scale: {nfe: {solver: {"mean", "median"}}}}}."""


def summary(cells: Cells, kind: str = "mean") -> dict[str, Any]:
    """Of each solver: its error over the best of the yardstick, as geometric mean at each scale, the greatest one and
    where it is, and how many cells are within 1.2."""
    said: dict[str, Any] = {}
    for name in SOLVERS:
        ratios = {
            (scale, target, nfe): row[name][kind] / min(row[other][kind] for other in YARDSTICK)
            for target, by_scale in cells.items()
            for scale, by_nfe in by_scale.items()
            for nfe, row in by_nfe.items()
        }
        scales = dict.fromkeys(scale for scale, *_ in ratios)
        mean = {s: float(np.exp(np.mean([np.log(r) for at, r in ratios.items() if at[0] == s]))) for s in scales}
        worst = max(ratios, key=ratios.__getitem__)
        within = sum(r <= 1.2 for r in ratios.values())
        said[name] = {"mean": mean, "greatest": ratios[worst], "at": worst, "within": within, "of": len(ratios)}
    return said


def plot(cells: Cells, kind: str = "mean") -> bytes:
    """A PNG: error against NFE, a panel a scale, the geometric mean over the targets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(SCALES), 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(SCALES), sharey=True)
    for axes, scale in zip(panels, SCALES, strict=True):
        for name in SOLVERS:
            rows = [[np.log(table[str(scale)][str(n)][name][kind]) for n in NFE] for table in cells.values()]
            bold = {"linewidth": 3, "color": "#0b7a75", "zorder": 3} if name == "default" else {"linewidth": 1.4}
            axes.plot(NFE, np.exp(np.mean(rows, 0)), marker="o", markersize=4, label=name, **bold)
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the denoiser", title=f"scale {scale:g}")
        axes.set_xticks(NFE, labels=[str(n) for n in NFE])
        axes.minorticks_off()
        axes.grid(color="#d9d9d9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{kind} error per dimension")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SOLVERS), frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _points() -> tuple[str, Mixture, Any]:
    means = np.random.default_rng(42).standard_normal((8, 16))
    return "two of 8 points in 16-D, std 0.1", Mixture(means, np.zeros(8), np.float64(0.1**2)), slice(2)


def _of(name: str, words: str, some: Callable[[Mixture], Any]) -> Callable[[], tuple[str, Mixture, Any]]:
    def make() -> tuple[str, Mixture, Any]:
        target = targets.load(name)
        assert target.mixture is not None
        return f"{words} of: {target.title}", target.mixture, some(target.mixture)

    return make


_MAKERS: dict[str, Callable[[], tuple[str, Mixture, Any]]] = {
    "points": _points,
    "gaussians": _of("gaussians", "three", lambda mixture: slice(3)),
    "digits": _of("digits", "100", lambda mixture: slice(100)),
    "curve": _of("curve", "a quarter", lambda mixture: slice(50)),
}
NAMES = tuple(_MAKERS)
