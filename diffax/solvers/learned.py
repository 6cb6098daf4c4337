"""Solvers that are numbers: a table fitted to a model and a grid (`dx.grids.fit_solver`), kept as JSON."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffax import _check
from diffax._files import whole
from diffax.solvers.linear import Rows, Solver, is_table, linear

__all__ = ["learned", "load_learned", "save_learned", "table_of"]

_FORMAT = "diffax learned solver 1"


def learned(sigmas: Any, rows: Rows, order: int = 1) -> Solver:
    """The solver of a given table; it serves the grid that the table was made for and no other.

    Args:
      sigmas: that grid, [n + 1], n >= 1; the same for all samples.
      rows: its table, see `diffax.solvers.linear.Rows`.
      order: claimed for it; a table for one n has none to measure.

    Raises: ValueError for arguments that are not as described and, in use, for another grid.
    """
    sigmas = _grid(sigmas)
    _check_rows(_check.instance("rows", rows, Rows, "dx.solvers.euler().rows(sigmas, True)"))
    n = len(sigmas) - 1

    def table(given: Any, to_zero: bool) -> Rows:
        if np.shape(given) != (n + 1,):
            raise ValueError(f"sigmas has shape {np.shape(given)}: this solver was fitted for n = {n}, [{n + 1}]")
        if _check.concrete(given, sigmas) and not np.allclose(given, sigmas, rtol=1e-5, atol=0):
            raise ValueError(f"sigmas = {given}: this solver was fitted for sigmas = {np.asarray(sigmas)}")
        return rows

    stochastic = rows.before is not None or rows.after is not None
    return linear(order, lambda _: len(rows.sigma), table, stochastic)


def save_learned(path: str | os.PathLike[str], sigmas: Any, solver: Solver) -> None:
    """Writes a grid [n + 1] and the table of its solver to a JSON file, whole or not at all.

    Raises: ValueError for sigmas per sample, and for a solver that is not a table: `adaptive`, and any whose fields
      `init` and `step` are its own.
    """
    _check_path(path)
    sigmas = np.asarray(_grid(sigmas), np.float64)
    rows = table_of(_check.instance("solver", solver, Solver, "dx.solvers.heun()"), sigmas)
    content = {"format": _FORMAT, "order": solver.order, "sigmas": sigmas.tolist()}
    content |= {name: None if f is None else np.asarray(f).tolist() for name, f in rows._asdict().items()}
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def load_learned(path: str | os.PathLike[str]) -> tuple[np.ndarray, Solver]:
    """The (sigmas, solver) that `save_learned` wrote.

    Raises: ValueError if the file is not such a one, OSError if it cannot be read.
    """
    _check_path(path)
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != _FORMAT:
            raise KeyError("format")
        fields = {
            name: None if content[name] is None else np.asarray(content[name], np.float64) for name in Rows._fields
        }
        rows, sigmas = Rows(**fields), np.asarray(content["sigmas"], np.float64)
        if rows.ends is not None:
            rows = rows._replace(ends=rows.ends.astype(int))
        return sigmas, learned(sigmas, rows, content["order"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: is not a solver written by save_learned ({type(error).__name__}: {error})"
        ) from error


def table_of(solver: Solver, sigmas: np.ndarray) -> Rows:
    """The table of a solver on a grid [n + 1]. Raises ValueError if the solver is none."""
    if not is_table(solver):
        raise ValueError(
            "solver has no table of coefficients: must be one of fixed steps, such as dx.solvers.heun(), whose `init` "
            "and `step` are those of diffax.solvers.linear"
        )
    return solver.rows(sigmas, bool(sigmas[-1] == 0))


# ---- parts ----------------------------------------------------------------------------------------------------------


def _grid(sigmas: Any) -> Any:
    """[n + 1] levels, as `dx.sample` takes them."""
    values = _check.real("sigmas", sigmas, "be [n + 1] numbers")
    if np.ndim(sigmas) != 1 or np.size(sigmas) < 2:
        raise ValueError(f"sigmas has shape {np.shape(sigmas)}: must be [n + 1] with n >= 1")
    if values is None:
        return sigmas
    steps = np.diff(values)
    descends, ascends = (steps < 0).all() and values[-1] >= 0, (steps > 0).all() and values[0] > 0
    if not (np.isfinite(values).all() and (descends or ascends)):
        raise ValueError(
            f"sigmas = {_check.shown(sigmas)}: must be finite, strictly descending and >= 0, or strictly ascending and "
            "> 0"
        )
    return sigmas


def _check_rows(rows: Rows) -> None:
    """Raises ValueError unless the fields are numbers, finite where they are concrete, in the shapes of `Rows`."""
    shape = np.shape(rows.sigma)
    state = np.shape(rows.state)
    wanted = {"sigma": shape, "point": state, "state": state}
    wanted |= {"value": (*shape, 2), "before": shape, "after": (*shape, 2)}
    for name, expected in wanted.items():
        field = getattr(rows, name)
        if field is None and name in ("value", "before", "after"):
            continue
        _check.finite(f"rows.{name}", field)
        if np.shape(field) != expected or len(shape) != 1 or len(state) != 2 or state[0] != shape[0] or state[1] < 2:
            raise ValueError(
                f"rows.{name} has shape {np.shape(field)}: must be an entry an evaluation, which sigma {shape} says"
            )
    _check.positive("rows.sigma", rows.sigma)
    if rows.ends is not None:
        ends = np.asarray(rows.ends)
        if ends.ndim != 1 or (np.diff(ends) <= 0).any() or ends[0] < 0 or ends[-1] != shape[0] - 1:
            raise ValueError(
                f"rows.ends = {_check.shown(ends)}: must be rows, ascending to the last one, {shape[0] - 1}"
            )


def _check_path(path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path = {_check.shown(path)}: must be the path of a file")
