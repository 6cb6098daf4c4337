"""What the laboratory tells: means over seeds with their standard errors, as JSON with what made it, and a picture."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from diffax._files import whole
from diffax.training.summary import environment, write_json

__all__ = ["OUT", "SEEDS", "line", "mean", "over_seeds", "picture", "seeds", "spell", "write"]

OUT = flags.DEFINE_string(
    "out", "runs/lab", "The folder of the runs; what is found goes to OUT/NAME.json and NAME.png."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each variant, with seeds 0, 1, ...")


def seeds() -> range:
    """The seeds of each variant."""
    if SEEDS.value < 1:
        raise ValueError(f"--seeds = {SEEDS.value}: must be at least 1")
    return range(SEEDS.value)


def over_seeds(values: Iterable[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """{score: {"mean", "standard_error", "seeds"}} of the scores of several seeds."""
    rows = list(values)
    return {name: mean([row[name] for row in rows]) for name in rows[0]}


def mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean of values of several seeds, its standard error (None of one seed), and the values."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "standard_error": error, "seeds": list(values)}


def spell(value: Mapping[str, Any]) -> str:
    """As in 12.3 ± 0.4."""
    error = value["standard_error"]
    return f"{value['mean']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def write(experiment: str, found: Mapping[str, Any]) -> None:
    """OUT/EXPERIMENT.json: what was found, and by what."""
    path = Path(OUT.value) / f"{experiment}.json"
    write_json(path, {"seeds": SEEDS.value, **found, "environment": environment()})
    print(path)


def picture(experiment: str, figure: Any) -> None:
    """OUT/EXPERIMENT.png, of a matplotlib figure; whole, when several processes write it too."""
    path = Path(OUT.value) / f"{experiment}.png"
    with whole(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    print(path)


def line(ax: Any, points: Mapping[float, Mapping[str, Any]], *, label: str, **how: Any) -> None:
    """Means over the seeds, with bars of one standard error, along a matplotlib axis."""
    errors = [value["standard_error"] or 0 for value in points.values()]
    ax.errorbar(
        list(points),
        [value["mean"] for value in points.values()],
        errors,
        marker="o",
        ms=3,
        capsize=2,
        label=label,
        **how,
    )
