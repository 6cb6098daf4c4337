"""The solvers of k-diffusion, diffusers and azula on the benchmark's targets: same noise, same grids, counted NFE.

    .venv-peers/bin/python -m experiments.bench.peers --problems bench/problems --out bench/peers.json

runs in an environment of its own (`make bench-peers`), where diffax need not be: problems come as files. Each library
is driven through its public classes, given the very sigmas of the grid, and the kind of model output that costs it the
least rounding. A grid is n positive sigmas; what follows them is one of two tails of equal NFE, both tried where the
library allows: the library's own step to sigma = 0, or ("+D") a denoising of the state at the last positive sigma.

Left out are schedulers that repeat the arithmetic of another one here (diffusers' Euler, Heun, KDPM2, LMS and EDM
variants are k-diffusion's and DPM-Solver's), and tails that differ in the sixth digit only. What fails is recorded with
its message.
"""

import argparse
import functools
import json
import logging
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.bench import common, speed, targets

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


TIMED = (
    *("k-diffusion/Euler", "k-diffusion/DPM++2M", "k-diffusion/DPM++3M"),
    *("diffusers/DPM++2M", "diffusers/DPM++3M", "diffusers/DEIS-3+D", "diffusers/UniPC-3", "diffusers/IPNDM"),
    *("azula/DDIM", "azula/vAB-3", "azula/zEAB-3+D"),
)
"""Solvers whose loop is timed."""


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


PACKAGES = ("k-diffusion", "diffusers", "azula")


def peers() -> list[Peer]:
    """All solvers of those libraries that are installed."""
    found = []
    for package, make in zip(PACKAGES, (_k_diffusion, _diffusers, _azula), strict=True):
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
    found: list[Peer] = []

    def add(name: str, scheduler: str, tails: str, **options: Any) -> None:
        make = getattr(diffusers, f"{scheduler}Scheduler")
        drive = _ipndm if scheduler == "IPNDM" else _scheduled
        options = options if scheduler == "IPNDM" else {"prediction_type": "sample", **options}

        def run(denoise: Callable, x: Any, sigmas: np.ndarray) -> Any:
            return drive(make(**options), denoise, x, sigmas)

        found.extend(Peer(f"diffusers/{name}{'' if t == '0' else '+D'}", run, one, t == "0") for t in tails)

    for order in (2, 3):
        for kind in ("midpoint", "heun") if order == 2 else ("midpoint",):  # order 3 has one form only
            label = f"{order}M" if kind == "midpoint" else f"{order}M-heun"
            form: dict[str, Any] = {"solver_order": order, "solver_type": kind}
            add(f"DPM++{label}", "DPMSolverMultistep", "0D", **form)
            noise = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
            add(f"DPM-{label}", "DPMSolverMultistep", "D", **form, **noise)
        add(f"DPM++{order}S", "DPMSolverSinglestep", "0", solver_order=order, lower_order_final=True)
        add(f"DEIS-{order}", "DEISMultistep", "D", solver_order=order)
    for order in (1, 2, 3, 4):
        add(f"UniPC-{order}", "UniPCMultistep", "0D", solver_order=order)
    for order in (2, 3):
        add(f"UniPC-{order}-bh1", "UniPCMultistep", "D", solver_order=order, solver_type="bh1")
        add(f"UniPC-{order}-eps", "UniPCMultistep", "D", solver_order=order, predict_x0=False)
        add(f"UniPC-{order}-full", "UniPCMultistep", "D", solver_order=order, lower_order_final=False)
    for p, c in ((1, 1), (2, 2), (3, 3), (3, 4), (4, 4)):
        add(f"SASolver-p{p}c{c}", "SASolver", "D", tau_func=lambda _: 0, predictor_order=p, corrector_order=c)
    add("IPNDM", "IPNDM", "0D")
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


def timings(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """{denoiser: {peer: what `speed.compare` says}}: the library's loop beside a loop over the bare denoiser."""
    import torch

    layers = [torch.as_tensor(layer) for layer in speed.layers()]
    sigmas, x = common.karras(speed.STEPS), torch.as_tensor(speed.start())

    def network(x: Any, sigma: Any) -> Any:
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1)
        y = x / torch.sqrt(1 + sigma**2)
        for layer in layers[:-1]:
            y = torch.nn.functional.silu(y @ layer)
        return x / (1 + sigma**2) + y @ layers[-1]

    def bare(denoise: Callable) -> None:
        for sigma in sigmas[:-1].tolist():
            denoise(x, sigma)  # not of its own result, which would fade into slow denormal numbers

    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, denoise in (("x / 2", lambda x, sigma: 0.5 * x), ("small network", network)):
        for peer in peers():
            if peer.name in TIMED:
                n = sigmas if peer.to_zero else sigmas[:-1]
                found.setdefault(kind, {})[peer.name] = speed.compare(
                    functools.partial(peer.run, denoise, x, n), functools.partial(bare, denoise), rounds
                )
    return found


# ---- the command ----------------------------------------------------------------------------------------------------


def _problems(folder: Path) -> list[tuple[targets.Target, np.ndarray]]:
    """All problems of a folder, the quickest first."""
    return [targets.read(path) for path in sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_size)]


def main() -> None:
    """Writes {"errors": {target: {nfe: {peer/grid: {mean, median}}}}, ...}, anew after every NFE; or timings."""
    import torch
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--problems", type=Path, help="folder of problems, from bench_solvers --problems")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file to write; timings are added to what it holds"
    )
    parser.add_argument("--nfe", default="5,6,8,10,12,15,20,25,35,50", help="numbers of evaluations")
    parser.add_argument("--speed", type=int, default=0, help="measure the cost of a step in so many rounds instead")
    args = parser.parse_args()
    budgets = args.nfe.split(",")
    if bool(args.problems) == bool(args.speed):
        parser.error("give --problems or --speed")
    if not all(n.isdecimal() and int(n) > 0 for n in budgets):
        parser.error(f"--nfe = {args.nfe}: must be positive integers, such as --nfe=5,10,20")
    problems = [] if args.speed else _problems(args.problems)
    if not problems and not args.speed:
        parser.error(
            f"--problems = {args.problems}: holds no .npz file; python -m experiments.bench_solvers writes them"
        )
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    about = {"versions": {name: version(name) for name in ("torch", *PACKAGES)}, "date": time.strftime("%F")}
    torch.set_grad_enabled(False)
    if args.speed:
        known = json.loads(args.out.read_text()) if args.out.exists() else about
        args.out.write_text(json.dumps(known | {"speed": timings(args.speed)}, indent=1) + "\n")
        return
    solvers = peers()
    result: dict[str, Any] = about | {"seeds": {t.name: t.seeds for t, _ in problems}, "errors": {}, "failures": {}}
    with tqdm(total=len(problems) * len(budgets) * len(solvers), unit="solver", smoothing=0.05) as bar:
        for target, end in problems:
            denoise, x = target.torch_denoiser(), torch.as_tensor(target.start())
            for nfe in budgets:
                table = result["errors"].setdefault(target.name, {}).setdefault(nfe, {})
                for peer in solvers:
                    bar.set_postfix_str(f"{target.name}, {nfe} evaluations: {peer.name}", refresh=False)
                    for grid, sigmas in common.GRIDS.items():
                        name = f"{peer.name}/{grid}"
                        try:
                            table[name] = common.errors(measure(peer, denoise, x, sigmas, int(nfe)), end)
                        except Exception as error:  # whatever another library does, the benchmark goes on
                            result["failures"][f"{target.name} {nfe} {name}"] = f"{type(error).__name__}: {error}"[:200]
                    bar.update()
                args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
