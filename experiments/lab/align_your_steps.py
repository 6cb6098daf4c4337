"""Align your steps (Sabour et al. 2024, arXiv:2404.14507): grids that are optimised for a model, at few steps.

    python -m experiments.lab.align_your_steps --out runs/lab

Grids of 5 to 20 steps: Karras (rho = 7), even in logSNR, even in the time of a flow, those of least KLUB and those of
`grids.fit`; for trained networks and for an exact mixture of training images; by two deterministic solvers and by
`STOCHASTIC`, stochastic DDIM, which the KLUB is a bound for and `grids.fit` is not made for. Grids are found for the
network of the first seed, on other noise than they are judged on, and used for those of all seeds. The search for the
least KLUB is stopped where `SOLVERS[0]` comes nearest to the exact solution, which is what `grids.fit` goes by, too.

Scores are the FD and, since a better grid is one that comes nearer to the exact solution, the distance per pixel (of a
range of 2) of the deterministic solvers to the end of `REFERENCE` steps from the same noise.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax as dx
from diffax import data
from diffax.training.summary import read_json, write_json
from experiments import cli
from experiments import workdir as workdirs
from experiments.generate import class_labels
from experiments.held_out import everything
from experiments.lab import protocol, results

STEPS = (5, 6, 8, 10, 15, 20)
SOLVERS, STOCHASTIC = ("dpmpp_2m", "default"), "ancestral"
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
PILOTS, CLEAN, JUDGED = 64, 256, 256
"""Noises of grids.fit, images of grids.align_your_steps, and noises that the distance is measured on."""
REFERENCE = 128
ROUNDS, ITERATIONS = 12, 100
"""Of align_your_steps, and of fit."""
CENTRES, STD = 1000, 0.1
"""The components of the exact mixture, training images, and their standard deviation."""

Grids = dict[str, dict[str, dict[int, Any]]]
"""{grid: {solver: {n: sigmas [n + 1]}}}"""
Model = Callable[[Any, Any], dx.Denoiser]
"""(params, label) -> denoiser."""


def main() -> None:
    trained = protocol.runs("align_your_steps", {"network": {}})
    config = workdirs.read_config(trained[0].workdir)
    images = everything(workdirs.load_dataset(config, "train"))
    mesh = workdirs.mesh_of(config)
    networks = [workdirs.load_ema(run.workdir, config, mesh)[:2] for run in trained]
    rec, _ = networks[0]
    x0 = data.to_unit(images["image"], rec.levels)

    centres = x0[:CENTRES]
    exact = dx.gaussian_mixture(centres, STD)
    models: dict[str, tuple[Model, list[Any]]] = {  # and what its denoisers are made of
        "network": (
            lambda params, label: dx.denoiser(rec.network.apply, params, rec.preconditioning, label),
            [params for _, params in networks],
        ),
        "mixture": (lambda _, label: exact, [None]),
    }
    some = centres[np.arange(CLEAN) * len(centres) // CLEAN]  # spread over all of them
    clean = {"network": x0[:CLEAN], "mixture": some + STD * noises(3, CLEAN, x0.shape[1:]) / SIGMA_MAX}

    label = images["label"][:CLEAN] if "label" in images else None
    settings = [workdirs.identity(config), config.train.steps, SIGMA_MIN, SIGMA_MAX, CENTRES, STD, CLEAN]
    settings += [PILOTS, REFERENCE, SOLVERS[0], ROUNDS, ITERATIONS]

    def found_for(name: str) -> Grids:
        (model, parameters), folder = models[name], Path(results.OUT.value) / "align_your_steps" / f"grids_{name}"
        return find(functools.partial(model, parameters[0]), clean[name], label, rec.num_classes, folder, settings)

    grids = {name: found_for(name) for name in models}
    distance = {name: distances(*model, grids[name], x0.shape[1:], rec.num_classes) for name, model in models.items()}
    found: dict[str, Any] = {"grids": jax.tree.map(np.ndarray.tolist, grids), "distance": {}}
    for name, values in distance.items():
        found["distance"][name] = {key: results.mean([value[key] for value in values]) for key in values[0]}
    wanted = {key: scoring(solver, sigmas) for key, solver, sigmas in each(grids["network"])}
    protocol.runs("align_your_steps", {"network": {}}, wanted)
    found["fd"] = protocol.over_seeds(trained, wanted)
    protocol.write("align_your_steps", trained, found)
    results.picture("align_your_steps", plot(found))


def find(
    model: Callable[[Any], dx.Denoiser],
    clean: Any,
    label: Any,
    num_classes: int | None,
    folder: Path,
    settings: list[Any],
) -> Grids:
    """For a model of label -> denoiser, and images of its law with their labels. Those that take long to find are kept
    in the folder with the settings that they were found with; processes divide them."""
    even = {
        "Karras": dx.schedules.karras(SIGMA_MIN, SIGMA_MAX),
        "logSNR": dx.schedules.geometric(SIGMA_MIN, SIGMA_MAX),
        "time": dx.schedules.truncate(dx.schedules.flow(), *(float(-2 * np.log(s)) for s in (SIGMA_MAX, SIGMA_MIN))),
    }
    by_name = {
        name: {n: np.asarray(dx.schedules.sigmas(schedule, n)) for n in STEPS} for name, schedule in even.items()
    }
    pilots = noises(1, PILOTS, clean.shape[1:])
    of_clean, of_pilots = model(None if label is None else jnp.asarray(label)), model(labels(PILOTS, num_classes))

    @functools.cache  # only where a grid is still to be found
    def judge() -> Callable[[Any, str], float]:
        return from_exact(lambda _, label: model(label), pilots, labels(PILOTS, num_classes))(None)

    def aligned(n: int) -> np.ndarray:
        return dx.grids.align_your_steps(
            of_clean,
            clean,
            n,
            jax.random.key(0),
            sigma_min=SIGMA_MIN,
            sigma_max=SIGMA_MAX,
            rounds=ROUNDS,
            judge=lambda sigmas: judge()(sigmas, SOLVERS[0]),
        )

    def fitted(solver: str, n: int) -> np.ndarray:
        return dx.grids.fit(of_pilots, pilots, n, solver=method(solver), iterations=ITERATIONS)

    work = {folder / f"AYS_{n}": functools.partial(aligned, n) for n in STEPS}
    work |= {folder / f"fit_{solver}_{n}": functools.partial(fitted, solver, n) for solver in SOLVERS for n in STEPS}
    found = {}
    for path in workdirs.divided(work):
        file = path.with_suffix(".json")
        before = read_json(file) if file.exists() else {}
        if before.get("settings") != settings:
            before = {"settings": settings, "sigmas": work[path]().tolist()}
            write_json(file, before)
        found[path.name] = np.asarray(before["sigmas"])

    by_name["AYS"] = {n: found[f"AYS_{n}"] for n in STEPS}
    grids: Grids = {name: dict.fromkeys((*SOLVERS, STOCHASTIC), by_steps) for name, by_steps in by_name.items()}
    grids["fit"] = {solver: {n: found[f"fit_{solver}_{n}"] for n in STEPS} for solver in SOLVERS}
    return grids


def each(grids: Grids) -> Iterator[tuple[str, str, Any]]:
    """("solver, grid, n", solver, sigmas [n + 1])."""
    for grid, by_solver in grids.items():
        for solver, by_steps in by_solver.items():
            yield from ((f"{solver}, {grid}, {n}", solver, sigmas) for n, sigmas in by_steps.items())


def scoring(solver: str, sigmas: Any) -> protocol.Scoring:
    """Of the networks' samples along a grid that ends in 0."""
    grid = f"tabulated({sigmas[:-1].tolist()})"
    return protocol.Scoring("network", {"solver": solver, "grid": grid, "steps": len(sigmas) - 1})


def distances(
    model: Model, parameters: list[Any], grids: Grids, shape: tuple[int, ...], num_classes: int | None
) -> list[dict[str, float]]:
    """Of each of the parameters: {"solver, grid, n": root mean square distance to the exact ends}."""
    distance = from_exact(model, noises(2, JUDGED, shape), labels(JUDGED, num_classes))

    def of(params: Any) -> dict[str, float]:
        far = distance(params)
        return {key: far(sigmas, solver) for key, solver, sigmas in each(grids) if solver != STOCHASTIC}

    return [of(params) for params in parameters]


def from_exact(model: Model, x: Any, label: Any) -> Callable[[Any], Callable[[Any, str], float]]:
    """params -> (sigmas, solver) -> the root mean square distance to the exact ends of the samples from noise x."""

    @functools.partial(jax.jit, static_argnames="solver")
    def ends(params: Any, sigmas: Any, solver: str) -> Any:
        return dx.sample(model(params, label), x, sigmas, solver=method(solver), to_zero=True)

    def of(params: Any) -> Callable[[Any, str], float]:
        exact = ends(params, dx.grids.plain(REFERENCE), "default")
        return lambda sigmas, solver: float(jnp.sqrt(jnp.mean((ends(params, sigmas, solver) - exact) ** 2)))

    return of


def method(name: str) -> dx.solvers.Solver:
    return getattr(dx.solvers, name)()


def noises(seed: int, count: int, shape: tuple[int, ...]) -> Any:
    return SIGMA_MAX * jax.random.normal(jax.random.key(seed), (count, *shape))


def labels(count: int, num_classes: int | None) -> Any:
    return None if num_classes is None else jnp.asarray(class_labels(count, num_classes))


def plot(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    scores = {
        "FD-ENLite0, networks": {key: value["fd"] for key, value in found["fd"].items()},
        "distance to the exact end, networks": found["distance"]["network"],
        "distance to the exact end, exact mixture": found["distance"]["mixture"],
    }
    solvers = (*SOLVERS, STOCHASTIC)
    figure = Figure(figsize=(15, 11), layout="constrained")
    for (what, by_key), axes in zip(scores.items(), figure.subplots(3, len(solvers), squeeze=False), strict=True):
        for solver, ax in zip(solvers, axes, strict=True):
            if what.startswith("distance") and solver == STOCHASTIC:
                ax.remove()
                continue
            for i, grid in enumerate(found["grids"]["network"]):
                keys = {n: f"{solver}, {grid}, {n}" for n in STEPS}
                if all(key in by_key for key in keys.values()):
                    results.line(ax, {n: by_key[key] for n, key in keys.items()}, label=grid, color=f"C{i}")
            ax.set(xlabel="evaluations", xticks=STEPS, ylabel=what, yscale="log", title=solver)
            ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    cli.run(main)
