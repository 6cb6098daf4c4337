"""The solvers of k-diffusion, diffusers and azula as functions of one form, run(denoise, x, sigmas).

Each library is driven through its public classes, given the very sigmas of the grid, and the kind of model output that
costs it the least rounding. A grid is n positive sigmas; what follows them is one of two tails of equal NFE, both tried
where the library allows: the library's own step to sigma = 0, or ("+D") a denoising of the state at the last positive
sigma. Left out are schedulers that repeat the arithmetic of another one here (diffusers' Euler, Heun, KDPM2, LMS and
EDM variants are k-diffusion's and DPM-Solver's), and tails that differ in the sixth digit only.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

__all__ = ["PACKAGES", "Peer", "one", "peers", "two"]

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
