"""Solvers that are numbers: a table fitted to a model and a grid (`dx.grids.fit_solver`), kept as JSON."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffax import _check
from diffax._files import whole
from diffax.solvers.linear import Rows, Solver, linear

__all__ = ["learned", "load_learned", "save_learned"]

_FORMAT = "diffax learned solver 1"


def learned(sigmas: Any, rows: Rows, order: int = 1) -> Solver:
    """The solver of a given table; it serves the grid that the table was made for and no other.

    Args:
      sigmas: that grid, [n + 1]; the same for all samples.
      rows: its table, see `diffax.solvers.linear`.
      order: claimed for it; a table for one n has none to measure.

    Raises: ValueError, in use, for another grid.
    """
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

    Raises: ValueError for sigmas per sample, and for a solver that is not a table (`adaptive`).
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1:
        raise ValueError(f"sigmas has shape {sigmas.shape}: must be [n + 1]")
    rows = solver.rows(sigmas, bool(sigmas[-1] == 0))
    if not isinstance(rows, Rows):
        raise ValueError("solver has no table of coefficients to write: must be one of fixed steps")
    content = {"format": _FORMAT, "order": solver.order, "sigmas": sigmas.tolist()}
    content |= {name: None if f is None else np.asarray(f).tolist() for name, f in rows._asdict().items()}
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def load_learned(path: str | os.PathLike[str]) -> tuple[np.ndarray, Solver]:
    """The (sigmas, solver) that `save_learned` wrote. Raises ValueError if the file is not such a one."""
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != _FORMAT:
            raise KeyError("format")
        fields = {
            name: None if content[name] is None else np.asarray(content[name], np.float64) for name in Rows._fields
        }
        rows = Rows(**fields)
        sigmas, count = np.asarray(content["sigmas"], np.float64), len(content["sigma"])
        shapes = [f.shape[0] for f in rows[:-1] if f is not None]
        if (
            sigmas.ndim != 1
            or set(shapes) != {count}
            or not all(np.isfinite(f).all() for f in fields.values() if f is not None)
        ):
            raise KeyError("shape")
        if rows.ends is not None:
            rows = rows._replace(ends=rows.ends.astype(int))
        return sigmas, learned(sigmas, rows, content["order"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: is not a solver written by save_learned ({type(error).__name__}: {error})"
        ) from error
