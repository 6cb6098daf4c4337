"""The solvers of k-diffusion, diffusers and azula on the benchmark's targets: same noise, same grids, counted NFE.

    .venv-peers/bin/python -m experiments.bench.peers --problems bench/problems --out bench/peers.json

runs in an environment of its own (`make bench-peers`), where diffax need not be: problems come as files. Each library
is driven through its public classes, given the very sigmas of the grid, and the kind of model output that costs it the
least rounding. A grid is n positive sigmas; what follows them is one of two tails of equal NFE, both tried where the
library allows: the library's own step to sigma = 0, or ("+D") a denoising of the state at the last positive sigma.

Left out are schedulers that repeat the arithmetic of another one here (diffusers' Euler, Heun, KDPM2, LMS and EDM
variants are k-diffusion's and DPM-Solver's), and tails that differ in the sixth digit only. What fails is recorded with its message.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.bench import grids, targets

__all__ = ["Peer", "measure", "peers"]

Run = Callable[[Callable, Any, np.ndarray], Any]
"""(denoise, x, sigmas [n + 1]) -> the state at the last sigma."""


class Peer(NamedTuple):
    """A solver of another library.

    Fields:
      name: library/solver.
      run: see Run.
      steps: the number of steps that an NFE allows.
      to_zero: whether it takes the step to 0 itself.
    """

    name: str
    run: Run
    steps: Callable[[int], int]
    to_zero: bool


def one(nfe: int) -> int:
    """Steps of a method with one evaluation a step."""
    return nfe


def two(nfe: int) -> int:
    """Of one with two, but for the last step."""
    return (nfe + 1) // 2


def measure(peer: Peer, denoise: Callable, x: Any, grid: Callable[[int], np.ndarray], nfe: int) -> np.ndarray:
    """The end points of a solver with at most nfe evaluations. Raises RuntimeError if it took more."""
    count = 0

    def counted(x: Any, sigma: Any) -> Any:
        nonlocal count
        count += 1
        return denoise(x, sigma)

    sigmas = grid(peer.steps(nfe))
    end = peer.run(counted, x, sigmas) if peer.to_zero else counted(peer.run(counted, x, sigmas[:-1]), sigmas[-2])
    if count > nfe:
        raise RuntimeError(f"{count} evaluations")
    return end.double().numpy()


def peers() -> list[Peer]:
    """All solvers of those libraries that are installed."""
    found = []
    for package, make in (("k-diffusion", _k_diffusion), ("diffusers", _diffusers), ("azula", _azula)):
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found += make()
    return found


def _k_diffusion() -> list[Peer]:
    import torch
    from k_diffusion import sampling

    def solver(name: str, **options: Any) -> Run:
        sample = getattr(sampling, f"sample_{name}")
        return lambda denoise, x, sigmas: sample(
            denoise, x, torch.as_tensor(sigmas, dtype=torch.float32), disable=True, **options
        )

    def fast(denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
        return sampling.sample_dpm_fast(denoise, x, sigmas[-1], sigmas[0], len(sigmas) - 1, disable=True)

    no_noise = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    return [
        Peer("k-diffusion/Euler", solver("euler"), one, True),
        Peer("k-diffusion/Heun", solver("heun"), two, True),
        Peer("k-diffusion/DPM-2", solver("dpm_2"), two, True),
        Peer("k-diffusion/LMS-4", solver("lms"), one, True),
        Peer("k-diffusion/DPM++2S", solver("dpmpp_2s_ancestral", **no_noise), two, True),
        Peer("k-diffusion/DPM++2M", solver("dpmpp_2m"), one, True),
        Peer("k-diffusion/DPM++3M", solver("dpmpp_3m_sde", **no_noise), one, True),
        Peer("k-diffusion/DPM-fast+D", fast, one, False),
    ]


def _diffusers() -> list[Peer]:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    found = []

    def add(name: str, scheduler: str, drive: Callable = _scheduled, tails: str = "0D", **options: Any) -> None:
        def make() -> Any:
            return getattr(diffusers, f"{scheduler}Scheduler")(**options)

        def run(denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
            return drive(make(), denoise, x, sigmas)

        found.extend(Peer(f"diffusers/{name}{'' if t == '0' else '+D'}", run, one, t == "0") for t in tails)

    x0 = {"prediction_type": "sample"}
    for order in (2, 3):
        for kind in ("midpoint", "heun"):
            if (order, kind) != (3, "heun"):  # order 3 has one form only
                full = {"solver_order": order, "solver_type": kind, **x0}
                label = order if kind == "midpoint" else f"{order}-heun"
                add(f"DPM++{label}M", "DPMSolverMultistep", **full)
                noise = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
                add(f"DPM-{label}M", "DPMSolverMultistep", tails="D", **full, **noise)
        add(f"DPM++{order}S", "DPMSolverSinglestep", tails="0", solver_order=order, lower_order_final=True, **x0)
        add(f"DEIS-{order}", "DEISMultistep", tails="D", solver_order=order, **x0)
    for order in (1, 2, 3, 4):
        add(f"UniPC-{order}", "UniPCMultistep", solver_order=order, **x0)
    for order in (2, 3):
        add(f"UniPC-{order}-bh1", "UniPCMultistep", tails="D", solver_order=order, solver_type="bh1", **x0)
        add(f"UniPC-{order}-eps", "UniPCMultistep", tails="D", solver_order=order, predict_x0=False, **x0)
        add(f"UniPC-{order}-full", "UniPCMultistep", tails="D", solver_order=order, lower_order_final=False, **x0)
    for p, c in ((1, 1), (2, 2), (3, 3), (3, 4), (4, 4)):
        orders = {"predictor_order": p, "corrector_order": c}
        add(f"SASolver-p{p}c{c}", "SASolver", tails="D", tau_func=lambda _: 0, **orders, **x0)
    add("IPNDM", "IPNDM", _ipndm)
    found.append(Peer("diffusers/PNDM", _pndm, lambda nfe: nfe - 1, True))
    return found


def _scheduled(scheduler: Any, denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
    """A scheduler that keeps its noise levels in `sigmas` and the state scaled to unit variance."""
    import torch

    n, scale = len(sigmas) - 1, np.hypot(1, sigmas).tolist()
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.as_tensor(sigmas, dtype=torch.float32)
    scheduler.timesteps = torch.arange(n - 1, -1, -1)
    scheduler.set_begin_index(0)
    x = x / scale[0]
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoise(x * scale[i], float(sigmas[i])), t, x).prev_sample
    return x * scale[-1]


def _ipndm(scheduler: Any, denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
    """The scheduler that keeps alpha and sigma apart, and takes velocities."""
    import torch

    n, scale = len(sigmas) - 1, np.hypot(1, sigmas).tolist()
    scheduler.set_timesteps(n)
    scheduler.betas = torch.as_tensor(sigmas / scale, dtype=torch.float32)
    scheduler.alphas = torch.as_tensor(1 / np.array(scale), dtype=torch.float32)
    scheduler.set_begin_index(0)
    x = x / scale[0]
    for i, (s, t) in enumerate(zip(sigmas.tolist(), scheduler.timesteps, strict=False)):
        state = x * scale[i]
        x0 = denoise(state, s)
        velocity = (state - x0) / (s * scale[i]) - s / scale[i] * x0
        x = scheduler.step(velocity, t, x).prev_sample
    return x * scale[-1]


def _pndm(denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
    """PNDM without Runge-Kutta steps, its training levels being the grid. It evaluates the second level twice."""
    import diffusers
    import torch

    n, scale = len(sigmas) - 1, np.hypot(1, sigmas).tolist()
    scheduler = diffusers.PNDMScheduler(n, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.as_tensor(1 / (1 + sigmas[-2::-1] ** 2))
    scheduler.set_timesteps(n)
    x = x / scale[0]
    for t in scheduler.timesteps:
        i = n - 1 - int(t)
        state = x * scale[i]
        eps = (state - denoise(state, float(sigmas[i]))) / float(sigmas[i])
        x = scheduler.step(eps, int(t), x).prev_sample
    return x


def _azula() -> list[Peer]:
    import torch
    from azula import denoise as posterior
    from azula import noise, sample

    class Levels(noise.Schedule):
        """The grid as a schedule: time 1 - i / n is its i-th sigma."""

        def __init__(self, sigmas: np.ndarray) -> None:
            self.sigmas = torch.as_tensor(sigmas, dtype=torch.float64)

        def __call__(self, t: Any) -> tuple[Any, Any]:
            sigma = self.sigmas[((1 - t) * (len(self.sigmas) - 1)).round().long()]
            return torch.ones_like(sigma), sigma

    class Exact(posterior.Denoiser):
        def __init__(self, denoise: Callable, schedule: Any) -> None:
            super().__init__()
            self.denoise, self.schedule = denoise, schedule

        def forward(self, x_t: Any, t: Any, **_: Any) -> Any:
            return posterior.DiracPosterior(self.denoise(x_t, self.schedule(t)[1]))

    def solver(name: str, **options: Any) -> Run:
        def run(denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
            model = Exact(denoise, Levels(sigmas))
            how = {"steps": len(sigmas) - 1, "silent": True, "dtype": torch.float64}
            return getattr(sample, f"{name}Sampler")(model, **how, **options)(x)

        return run

    found = [
        Peer("azula/DDIM", solver("DDIM"), one, True),
        Peer("azula/Heun+D", solver("Heun"), two, False),
    ]
    for order in (2, 3, 4):
        for name in ("zAB", "vAB"):
            found.append(Peer(f"azula/{name}-{order}", solver(name, order=order), one, True))
        for name in ("zEAB", "xEAB"):  # which cannot step to 0
            found.append(Peer(f"azula/{name}-{order}+D", solver(name, order=order), one, False))
    return found


# ---- the command ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Measures all peers on all problems and writes errors {target: {nfe: {peer/grid: {mean, median}}}}."""
    import torch
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--problems", type=Path, required=True, help="folder of problems, from bench_solvers")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--nfe", default="5,6,8,10,12,15,20,25,35,50", help="numbers of evaluations")
    parser.add_argument("--speed", action="store_true", help="measure the cost of a step instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.speed:
        args.out.write_text(json.dumps({"seconds": speed(), "versions": _versions()}, indent=2) + "\n")
        return
    budgets = [int(n) for n in args.nfe.split(",")]
    problems = [targets.read(path) for path in sorted(args.problems.glob("*.npz"), key=lambda p: p.stat().st_size)]
    solvers = peers()
    errors: dict[str, Any] = {}
    failures: dict[str, str] = {}
    work = len(problems) * len(budgets) * len(solvers) * len(grids.COMMON)
    with tqdm(total=work, unit="run", smoothing=0.05) as bar:
        for target, end in problems:
            denoise, x = target.torch_denoiser(), torch.as_tensor(target.start())
            for nfe in budgets:
                table = errors.setdefault(target.name, {}).setdefault(str(nfe), {})
                for peer in solvers:
                    for grid, sigmas in grids.COMMON.items():
                        name = f"{peer.name}/{grid}"
                        bar.set_postfix_str(f"{target.name} {nfe} {name}", refresh=False)
                        try:
                            with torch.no_grad():
                                table[name] = grids.errors(measure(peer, denoise, x, sigmas, nfe), end)
                        except Exception as error:  # whatever another library does, the benchmark goes on
                            failures[f"{target.name} {nfe} {name}"] = f"{type(error).__name__}: {error}"[:200]
                        bar.update()
                # Written as it goes, so that a long run can be looked at.
                result = {"errors": errors, "failures": failures, "versions": _versions(), "date": time.strftime("%F")}
                args.out.write_text(json.dumps(result, indent=1) + "\n")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "k-diffusion", "diffusers", "azula")}


if __name__ == "__main__":
    main()
