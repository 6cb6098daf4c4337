"""High noise scheduling (Gokmen et al. 2024, arXiv:2404.06353) against iCT's (Song & Dhariwal 2023, arXiv:2310.14189).

    python -m experiments.lab.consistency --out runs/lab --data mnist5k --seeds 3

Consistency training, with pairs of levels drawn from each of two distributions, on a number of levels that follows each
of four curricula, of which those that move do so over the whole run with the papers' first and last numbers:
  log-normal    iCT's, mean -1.1 and standard deviation 2.0 of log sigma
  polynomial    Gokmen et al.'s, power 4, each pair moved by a rounded normal number
  doubling (11 to 1281 levels), constant (20), sinusoidal (20 to 250 and back), square root (2 to 151)
and besides them
  pool          polynomial and sinusoidal, all levels taken from one fixed grid of 251
  distillation  of a denoiser that was trained for half of the images, for the other half, from its parameters, on 18
                levels, with Heun's step (Song et al. 2023, arXiv:2303.01469)

All runs see the same number of images. Samples of one and of two evaluations are scored; means are over the seeds, with
standard errors. The paper reports (CIFAR-10, FID, one network) 66.5 for log-normal, 33.5 for polynomial on a constant
number and 30.5 for polynomial and sinusoidal: what can be compared is the order.
"""

from collections.abc import Mapping
from typing import Any

from experiments import cli
from experiments.lab import protocol, results

PAIRS = {"log-normal": ("edm(p_mean=-1.1, p_std=2.0)", 0), "polynomial": ("polynomial(power=4)", 1)}
CURRICULA = {
    "doubling": "doubling(over={})",
    "constant": "constant(20)",
    "sinusoidal": "sinusoidal(over={})",
    "square root": "square_root(over={})",
}
EVALUATIONS = (1, 2)


def main() -> None:
    config = protocol.config_of()
    planned = variants(config.train.steps)
    protocol.plan("consistency", planned)  # so that no teacher is trained on for runs that cannot follow
    protocol.runs("consistency", {"teacher": planned.pop("teacher")})
    wanted = {name: {steps: protocol.Scoring(name, {"steps": steps}) for steps in EVALUATIONS} for name in planned}
    runs = protocol.runs("consistency", planned, wanted)
    scores = protocol.over_seeds(runs, wanted)
    found = {"images": config.train.steps * config.train.batch_size, "variants": scores}
    print(table(found))
    protocol.write("consistency", runs, found)
    results.picture("consistency", plot(found))


def variants(steps: int) -> dict[str, dict[str, Any]]:
    """Name -> overrides; the images of so many steps for each, the teacher's and the pupil's together."""
    if steps % 2:
        raise ValueError(
            f"config.train.steps = {steps}: must be even, as distillation has one half and its teacher the other"
        )
    common = {"model.label_dropout": 0.0, "sample.guidance": 1.0, "sample.steps": 2}
    found: dict[str, dict[str, Any]] = {
        f"{pairs}, {curriculum}": {
            "schedule": schedule,
            "objective": f"consistency_training(levels={levels.format(steps)}, jitter={jitter})",
        }
        for pairs, (schedule, jitter) in PAIRS.items()
        for curriculum, levels in CURRICULA.items()
    }
    found["polynomial, sinusoidal, pool"] = {
        "schedule": "polynomial(power=4)",
        "objective": f"consistency_training(levels=sinusoidal(over={steps}), jitter=1, pool=251)",
    }
    found["teacher"] = {"objective": "denoising()", "schedule": "edm()", "train.steps": steps // 2}
    teacher = str(protocol.folder("consistency", "teacher", "{seed}"))
    found["distillation"] = {
        "schedule": "karras()",
        "objective": f"consistency_distillation({teacher!r}, constant(18))",
        "train.steps": steps // 2,
    }
    return {name: common | overrides for name, overrides in found.items()}


# ---- what is told ---------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """A line a variant: the FD of one and of two evaluations."""
    lines = [f"{'FD-ENLite0':32} {'1 step':>16} {'2 steps':>16}"]
    for variant, by_steps in found["variants"].items():
        cells = (by_steps[steps]["fd"] for steps in EVALUATIONS)
        lines.append(f"{variant:32} " + " ".join(f"{results.spell(cell):>16}" for cell in cells))
    return "\n".join(lines)


def plot(found: Mapping[str, Any]) -> Any:
    """FD and accuracy by variant, of one and of two evaluations, with bars of one standard error."""
    from matplotlib.figure import Figure

    variants = list(found["variants"])
    names = [name for name in ("fd", "accuracy") if name in found["variants"][variants[0]][EVALUATIONS[0]]]
    figure = Figure(figsize=(5 * len(names) + 2, 1.2 + 0.35 * len(variants)), layout="constrained")
    (axes,) = figure.subplots(1, len(names), sharey=True, squeeze=False)
    for ax, name in zip(axes, names, strict=True):
        for steps, marker in zip(EVALUATIONS, "os", strict=True):
            values = [found["variants"][variant][steps][name] for variant in variants]
            means, errors = [v["mean"] for v in values], [v["standard_error"] or 0 for v in values]
            ax.errorbar(means, range(len(variants)), xerr=errors, fmt=marker, ms=4, capsize=2, label=f"{steps} step(s)")
        ax.set(xlabel="FD-ENLite0" if name == "fd" else name)
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].invert_yaxis()
    axes[-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    cli.run(main)
