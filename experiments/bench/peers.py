"""Measures the solvers of other libraries on the benchmark's targets: same noise, same grids, counted NFE.

    .venv-peers/bin/python -m experiments.bench.peers --problems bench/problems --out bench/peers.json

runs in an environment of its own (`make bench-peers`), where diffax need not be: problems come as files. What fails is
recorded with its message.
"""

import argparse
import functools
import json
import logging
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench import common, speed, targets
from experiments.bench.libraries import PACKAGES, Peer, peers

__all__ = ["measure", "timings"]

TIMED = (
    *("k-diffusion/Euler", "k-diffusion/DPM++2M", "k-diffusion/DPM++3M"),
    *("diffusers/DPM++2M", "diffusers/DPM++3M", "diffusers/DEIS-3+D", "diffusers/UniPC-3", "diffusers/IPNDM"),
    *("azula/DDIM", "azula/vAB-3", "azula/zEAB-3+D"),
)
"""Solvers whose loop is timed."""


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
