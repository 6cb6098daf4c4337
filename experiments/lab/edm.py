"""EDM (Karras et al. 2022, arXiv:2206.00364): its ablation, error against evaluations, churn, and two pitfalls.

    python -m experiments.lab.edm --out runs/lab

Rows, each with its config in `ROWS`, from the paper's figure 2 (samplers of one network) and table 2 (training):
  A   the VP recipe of Song et al. 2021 (eps, uniform time), and its sampler: Euler in time t, on an even grid of it
  A'  the network of A under DDIM on that grid: Euler in sigma
  B   the network of A under EDM's deterministic sampler: Heun on the rho = 7 grid
  D   and preconditioning
  E   and the loss: its weight, log-normal levels
  F   and geometric augmentation, of which the network is told
  E'  the network of E under `dx.sample`'s own solver and grid, which came later
(B and C of table 2 are hyperparameters and widths of a network of 56M parameters and have no counterpart here.)

Written are the FD of each row against the number of evaluations, of the stochastic sampler against its churn, and for
the pitfalls the loss and the norm of its gradient per noise level, before training and after: of an input that is not
standardised (c_in = 1), and of a loss that is not scaled (weight 1); and what their samples score.
"""

from typing import Any

from experiments import cli
from experiments.lab import levels, protocol, results

VP = "truncate(linear_beta(beta_min=0.1, beta_max=20), logsnr_min=-10.05, logsnr_max={})"
VP_TRAINING, VP_GRID = VP.format(13.8), VP.format(9.1)  # t in [1e-5, 1] and [1e-3, 1]
KARRAS = "karras(sigma_min=0.002, sigma_max=80, rho=7)"

TRAINED: dict[str, dict[str, str]] = {
    "A": {"schedule": VP_TRAINING, "preconditioning": "eps()", "weighting": "snr()"},
    "D": {"schedule": VP_TRAINING, "preconditioning": "edm()", "weighting": "snr()"},
    "E": {"schedule": "edm()", "preconditioning": "edm()", "weighting": "edm()"},
    "F": {"schedule": "edm()", "preconditioning": "edm()", "weighting": "edm()", "model.augment": "0.12"},
}
ROWS = {  # row -> (the network, its solver, its grid)
    "A": ("A", "euler_vp", VP_GRID),
    "A'": ("A", "euler", VP_GRID),
    "B": ("A", "heun", KARRAS),
    "D": ("D", "heun", KARRAS),
    "E": ("E", "heun", KARRAS),
    "F": ("F", "heun", KARRAS),
    "E'": ("E", "default", "plain"),
}
LABELS = {
    "A": "A: VP, Euler in its time",
    "A'": "A': DDIM on the grid of A",
    "B": "B: A under EDM's deterministic sampler",
    "D": "D: and preconditioning",
    "E": "E: and loss",
    "F": "F: and augmentation",
    "E'": "E': E under diffax's own sampler",
}
NFE = (9, 15, 21, 35, 59, 79)
MANY = (250, 1000)
"""Of Euler, for rows A and A'."""
EULER = {"solver": "euler", "grid": KARRAS, "steps": MANY[-1]}
CHURN = (0.0, 0.05, 0.1, 0.2, 0.4)
"""S_churn over the steps: gamma, by which a step first raises sigma. The sampler cuts it off at sqrt(2) - 1."""
CHURNED = (35, 127)
"""Evaluations that the stochastic sampler is given."""
PITFALLS: dict[str, dict[str, str]] = {
    "E": TRAINED["E"],
    "unscaled input": TRAINED["E"] | {"preconditioning": "unscaled_input(edm())"},
    "unscaled loss": TRAINED["E"] | {"weighting": "uniform()"},
}


def main() -> None:
    wanted = {
        "rows": {row: ablation(row) for row in ROWS},
        "euler_1000": {network: protocol.Scoring(network, EULER) for network in TRAINED},
        "churn": {nfe: {gamma: protocol.Scoring("E", stochastic(gamma, nfe)) for gamma in CHURN} for nfe in CHURNED},
        "pitfalls": {network: protocol.Scoring(network) for network in PITFALLS},
    }
    trained = protocol.runs("edm", TRAINED | PITFALLS, wanted)
    scores = protocol.over_seeds(trained, wanted)

    def pitfall(network: str) -> dict[str, Any]:
        of_seeds = [levels.by_level(run, "before", "after") for run in trained if run.variant == network]
        by_level = {what: levels.over_seeds([values[what] for values in of_seeds]) for what in of_seeds[0]}
        return by_level | {"scores": scores["pitfalls"][network]}

    found = scores | {
        "of_euler_1000": ratios(scores["rows"], scores["euler_1000"]),
        "pitfalls": {"logsnr": levels.middles()} | {name: pitfall(name) for name in PITFALLS},
    }
    protocol.write("edm", trained, found)
    results.picture("edm", plot(found))


def ratios(rows: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """{row: {NFE: the FD over that of the same network with 1000 steps of Euler, seed by seed}}."""
    seeds = lambda scores: scores["fd"]["seeds"]
    return {
        row: {
            nfe: results.mean([a / b for a, b in zip(seeds(scores), seeds(many[ROWS[row][0]]), strict=True)])
            for nfe, scores in by_nfe.items()
        }
        for row, by_nfe in rows.items()
    }


def ablation(row: str) -> dict[int, protocol.Scoring]:
    """{NFE: a row, sampled in so many evaluations}."""
    network, solver, grid = ROWS[row]
    evaluations = NFE + MANY if row in ("A", "A'") else NFE
    steps = {nfe: heun_steps(nfe) if solver == "heun" else nfe for nfe in evaluations}
    return {nfe: protocol.Scoring(network, {"solver": solver, "grid": grid, "steps": n}) for nfe, n in steps.items()}


def heun_steps(nfe: int) -> int:
    """The steps of Heun in so many evaluations; its last step, to sigma = 0, is Euler's."""
    return (nfe + 1) // 2


def stochastic(gamma: float, nfe: int) -> dict[str, Any]:
    """How samples are made with EDM's stochastic sampler."""
    steps = heun_steps(nfe)
    return {"solver": f"edm_stochastic(churn={gamma * steps}, s_min=0.05, s_max=50)", "grid": KARRAS, "steps": steps}


def plot(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    (errors, churn), pitfalls = figure.subplots(2, 2)
    for row, scores in found["rows"].items():
        results.line(errors, {int(nfe): value["fd"] for nfe, value in scores.items()}, label=LABELS[row])
    for name, value in found["euler_1000"].items():
        errors.axhline(value["fd"]["mean"], color="grey", lw=0.8, ls=":")
        errors.annotate(f"{name}, Euler {MANY[-1]}", (NFE[0], value["fd"]["mean"]), fontsize=7, va="bottom")
    errors.set(xlabel="evaluations", ylabel="FD-ENLite0", xscale="log", yscale="log", title="Ablation")
    for nfe, scores in found["churn"].items():
        results.line(churn, {float(g): value["fd"] for g, value in scores.items()}, label=f"E, {nfe} evaluations")
    churn.set(xlabel="gamma (S_churn over steps)", ylabel="FD-ENLite0", title="Stochastic sampler")
    what = {"loss": "loss as it is trained on", "gradient": "norm of its gradient"}
    for ax, (name, label) in zip(pitfalls, what.items(), strict=True):
        for i, pitfall in enumerate(PITFALLS):
            for when, style in (("before", "--"), ("after", "-")):
                values = dict(
                    zip(found["pitfalls"]["logsnr"], found["pitfalls"][pitfall][f"{name} {when}"], strict=True)
                )
                results.line(ax, values, label=f"{pitfall}, {when}", color=f"C{i}", ls=style)
        ax.set(xlabel="logSNR", ylabel=label, yscale="log", title="Pitfalls: before and after training")
    for ax in (errors, churn, *pitfalls):
        ax.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    cli.run(main)
