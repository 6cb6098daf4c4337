"""Every public function of the core is called with every wrong kind of argument.

What comes of it is an error of diffax's own, one sentence that names an argument and says what it must be; or a result
without NaN, where the value happens to be allowed. Nothing from inside of JAX or NumPy reaches the caller.
"""

import inspect
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
import diffax.augment

S, P, W = dx.schedules, dx.preconditioning, dx.weightings
KEY = jax.random.key(0)
X = np.float32(np.random.default_rng(0).normal(size=(4, 2)))
IMAGES = np.float32(np.random.default_rng(1).uniform(size=(2, 4, 4, 1)))
GRID = np.array([4.0, 2.0, 1.0, 0.0])
U = np.array([0.2, 0.4, 0.6, 0.8])
LEARNED = S.learned_init(KEY, units=2)
STATE = dx.adaptive.init(4)
DENOISE = dx.gaussian_mixture(np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.3)


def apply(params, x, c_noise, cond):
    return params * x


LOSS = {"apply": apply, "params": 0.5, "key": KEY, "x0": X, "cond": None}
NETWORK = {"draw": dx.draws.stratified, "part": None}

VALID = {
    S.align_your_steps: {"model": "deepfloyd_if"},
    S.anneal: {"a": S.cosine(), "b": S.flow(), "over": 10},
    S.beta: {"schedule": S.karras(), "a": 0.6, "b": 0.6},
    S.cauchy: {"mean": 0.0, "scale": 1.0},
    S.cosine: {"s": 0.0},
    S.cosine_scaled: {"s": 2.0},
    S.cosine_shifted: {"mean": 0.0},
    S.edm: {"p_mean": -1.2, "p_std": 1.2},
    S.flow: {"ratio": 1.0},
    S.from_betas: {"betas": np.array([0.1, 0.2, 0.3])},
    S.from_quantile: {"quantile": lambda u, v: 2 * v - 2 * u, "bracket": None},
    S.from_tails: {
        "tails": lambda lam: (jax.nn.sigmoid(-lam), jax.nn.sigmoid(lam)),
        "bracket": lambda u, v: (jnp.full_like(u, -60), jnp.full_like(u, 60)),
        "density": None,
    },
    S.geometric: {"sigma_min": 0.01, "sigma_max": 50.0},
    S.interpolate: {"a": S.karras(), "b": S.karras(0.01, 10.0), "weight": 0.5},
    S.karras: {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    S.laplace: {"mean": 0.0, "scale": 0.5},
    S.learned: {"params": LEARNED, "train_ends": True},
    S.learned_init: {"key": KEY, "units": 2, "logsnr_min": -9.0, "logsnr_max": 9.0},
    S.linear_beta: {"beta_min": 0.1, "beta_max": 20.0},
    S.linear_betas: {"steps": 10, "beta_start": 1e-4, "beta_end": 0.02},
    S.logit_normal: {"mean": 0.0, "std": 1.0, "ratio": 1.0},
    S.logsnr_from_sigma: {"sigma": 1.0},
    S.mix: {"schedules": [S.karras(), S.karras(0.01, 10.0)], "weights": None},
    S.per_pixel: {"params": LEARNED, "rate": np.ones((2, 3), np.float32), "floor": 1e-5},
    S.per_pixel_regulariser: {"schedule": S.karras(), "u": U, "weight": 1e-3},
    S.polynomial: {"power": 4.0, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    S.power: {"schedule": S.karras(), "exponent": 2.0},
    S.scale: {"schedule": S.cosine(), "by": 2.0},
    S.scaled_linear_betas: {"steps": 10, "beta_start": 1e-4, "beta_end": 0.02},
    S.shift: {"schedule": S.cosine(), "by": 1.0},
    S.sigma_from_logsnr: {"logsnr": 1.0},
    S.sigmas: {"schedule": S.karras(), "n": 5, "final": 0.0},
    S.sigmoid: {"start": -3.0, "end": 3.0, "tau": 1.0},
    S.tabulated: {"sigmas": np.array([1.0, 2.0, 3.0])},
    S.truncate: {"schedule": S.cosine(), "logsnr_min": -5.0, "logsnr_max": 5.0},
    S.uniform: {"logsnr_min": -5.0, "logsnr_max": 5.0},
    S.zero_terminal_snr: {"schedule": S.linear_beta()},
    P.edm: {"sigma_data": 0.5},
    P.unscaled_input: {"preconditioning": P.v()},
    W.edm: {"sigma_data": 0.5},
    W.effective: {"schedule": S.cosine(), "weighting": W.edm()},
    W.elbo: {"schedule": S.cosine()},
    W.min_snr: {"gamma": 5.0},
    W.p2: {"k": 1.0, "gamma": 1.0},
    W.resampled: {"weighting": W.edm(), "wanted": S.cosine(), "drawn": S.flow()},
    W.sigmoid: {"bias": 0.0},
    W.soft_min_snr: {"gamma": 5.0},
    W.target: {"preconditioning": P.v()},
    W.truncated_snr: {"least": 1.0},
    W.uncertainty: {"params": W.uncertainty_init(KEY, 4), "loss": X[:, 0] ** 2, "logsnr": X[:, 0]},
    W.uncertainty_init: {"key": KEY, "features": 4},
    dx.adaptive.init: {"bins": 4},
    dx.adaptive.schedule: {"state": STATE, "base": S.cosine(), "floor": 0.2},
    dx.adaptive.update: {
        "state": STATE,
        "base": S.cosine(),
        "loss": X[:, 0] ** 2,
        "logsnr": X[:, 0],
        "decay": 0.98,
    },
    dx.augment.geometric: {"key": KEY, "x": IMAGES, "probability": 0.1, "index": None},
    dx.consistency.distillation: LOSS
    | NETWORK
    | {"teacher": DENOISE, "solver": None, "sigmas": GRID[2::-1], "schedule": None, "jitter": 0.0, "huber": 1e-3}
    | {"sigma_data": 0.5, "target_params": None},
    dx.consistency.function: {"apply": apply, "params": 0.5, "cond": None, "sigma_min": 0.002, "sigma_data": 0.5},
    dx.consistency.levels: {"count": 5, "most": 8, "schedule": None, "pool": None},
    dx.consistency.sample: {"f": DENOISE, "x": 4 * X, "sigmas": GRID[:3], "key": KEY, "index": None, "sigma_min": 0.01},
    dx.consistency.training: LOSS
    | NETWORK
    | {"sigmas": GRID[2::-1], "schedule": None, "jitter": 0.0, "huber": 1e-3, "sigma_data": 0.5, "target_params": None},
    dx.curricula.doubling: {"step": 3, "total": 100, "s0": 10, "s1": 160},
    dx.curricula.sinusoidal: {"step": 3, "total": 100, "s0": 20, "s1": 250, "rho": 7.0},
    dx.curricula.square_root: {"step": 3, "total": 100, "s0": 2, "s1": 150},
    dx.denoiser: {"apply": apply, "params": 0.5, "preconditioning": P.v(), "cond": None},
    dx.draws.antithetic: {"key": KEY, "n": 4},
    dx.draws.iid: {"key": KEY, "n": 4},
    dx.draws.low_discrepancy: {"key": KEY, "n": 4},
    dx.draws.stratified: {"key": KEY, "n": 4},
    dx.gaussian_mixture: {"means": X, "std": 0.3, "weights": None},
    dx.grids.align_your_steps: {
        "denoise": DENOISE,
        "x0": X,
        "n": 2,
        "key": KEY,
        "sigma_max": 80.0,
        "sigma_min": 0.002,
        "sigma_data": 0.5,
        "rounds": 0,
        "final": 0.0,
        "judge": None,
    },
    dx.grids.auto: {"denoise": DENOISE, "x": 80 * X, "n": 1, "solver": None, "sigma_max": 80.0},
    dx.grids.dynamic: {
        "denoise": DENOISE,
        "x": 80 * X,
        "n": 2,
        "sigma_max": 80.0,
        "sigma_min": 0.002,
        "sigma_data": 0.5,
        "fine": 4,
    },
    dx.grids.fit: {
        "denoise": DENOISE,
        "x": 80 * X,
        "n": 1,
        "solver": None,
        "start": None,
        "sigma_max": 80.0,
        "batch": None,
        "iterations": 1,
        "rate": 0.05,
        "reference": 4,
        "report": None,
    },
    dx.grids.klub: {"denoise": DENOISE, "x0": X, "sigmas": GRID[:3], "key": KEY, "sigma_data": 0.5},
    dx.grids.plain: {"n": 4, "sigma_max": 80.0, "sigma_data": 1.0},
    dx.guidance.classifier_free: {
        "cond_denoise": DENOISE,
        "uncond_denoise": DENOISE,
        "scale": 2.0,
        "interval": (0.1, 2.0),
    },
    dx.guidance.drop_label: {"key": KEY, "label": np.arange(4), "null": 4, "rate": 0.1, "index": None},
    dx.likelihood.elbo_bits_per_dim: {
        "denoise": DENOISE,
        "x0": X,
        "key": KEY,
        "schedule": S.karras(),
        "steps": None,
        "levels": None,
        "dequantise": False,
        "draws": 2,
        "sigma_data": 1.0,
        "index": None,
    },
    dx.likelihood.ode_bits_per_dim: {
        "denoise": DENOISE,
        "x0": X,
        "key": KEY,
        "sigma_min": 1.0,
        "sigma_max": 2.0,
        "probes": 1,
        "levels": None,
        "sigma_data": 1.0,
        "rtol": 1e-2,
        "atol": 1e-2,
        "max_steps": 100,
        "index": None,
    },
    dx.losses.denoising: LOSS | NETWORK | {"schedule": None, "preconditioning": None, "weighting": None},
    dx.noise.normal: {"key": KEY, "index": np.arange(4), "shape": (2,), "dtype": jnp.float32},
    dx.noise.sample_keys: {"key": KEY, "index": np.arange(4)},
    dx.noise.threefry: {"key": KEY},
    dx.optics.airy: {"shape": (4, 4), "radius": 1.0},
    dx.optics.binned: {"image": IMAGES, "factor": 2},
    dx.optics.blur: {"image": IMAGES, "transfer": dx.optics.gaussian((4, 4), 1.0)},
    dx.optics.defocused: {"phase": IMAGES, "distances": (1.0, -1.0), "wavelength": 0.5, "pixel": 1.0},
    dx.optics.gaussian: {"shape": (4, 4), "sigma": 1.0},
    dx.optics.photons: {"key": KEY, "intensity": IMAGES, "peak": 10.0, "read_noise": 1.0, "index": None},
    dx.optics.propagate: {"field": IMAGES + 0j, "distance": 1.0, "wavelength": 0.5, "pixel": 1.0},
    dx.optics.propagation: {"shape": (4, 4), "distance": 1.0, "wavelength": 0.5, "pixel": 1.0},
    dx.sample: {
        "denoise": DENOISE,
        "x": 4 * X,
        "sigmas": GRID,
        "solver": dx.solvers.euler(),
        "key": None,
        "index": None,
        "noise": None,
        "trajectory": False,
        "check": False,
        "to_zero": None,
    },
    dx.variational.conditional: LOSS
    | NETWORK
    | {
        "schedule": S.karras(),
        "preconditioning": None,
        "weighting": None,
        "prior_weight": 2.0,
        "curvature_weight": 0.1,
    },
    dx.variational.prior: {"schedule": S.karras(), "x0": X},
    dx.solvers.adams_bashforth: {"order": 3, "space": "v", "bootstrap": True, "sigma_data": 1.0},
    dx.solvers.adaptive: {"rtol": 1e-3, "atol": 1e-3, "max_steps": 10, "sigma_data": 1.0},
    dx.solvers.ancestral: {"eta": 1.0, "variance": "small"},
    dx.solvers.annealed_langevin: {"step": 0.1, "corrections": 2},
    dx.solvers.default: {"sigma_data": 1.0},
    dx.solvers.deis: {"order": 3, "bootstrap": False, "beta_min": 0.1, "beta_max": 20.0},
    dx.solvers.dpm_solver_2: {"r": 0.5},
    dx.solvers.dpm_solver_3: {"r1": 0.3, "r2": 0.6},
    dx.solvers.dpmpp_1_sde: {"eta": 1.0},
    dx.solvers.dpmpp_2m_sde: {"eta": 1.0},
    dx.solvers.dpmpp_2s: {"r": 0.5},
    dx.solvers.dpmpp_2s_sde: {"eta": 1.0, "r": 0.5},
    dx.solvers.dpmpp_3m: {"corrected": False, "bootstrap": False},
    dx.solvers.dpmpp_3m_sde: {"eta": 1.0, "corrected": False},
    dx.solvers.dpmpp_3s: {"r1": 0.3, "r2": 0.6},
    dx.solvers.dpmpp_3s_sde: {"eta": 1.0},
    dx.solvers.edm_stochastic: {"churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
    dx.solvers.er_sde: {"order": 3},
    dx.solvers.euler_vp: {"beta_min": 0.1, "beta_max": 20.0},
    dx.solvers.exponential_ab: {"order": 3, "space": "x0", "bootstrap": True},
    dx.solvers.ipndm: {"order": 4},
    dx.solvers.lms: {"order": 4, "bootstrap": False},
    dx.solvers.predictor_corrector: {"snr": 0.16, "corrections": 1},
    dx.solvers.runge_kutta: {"inner": [[1.0]], "final": [0.5, 0.5], "order": 2, "time": "sigma"},
    dx.solvers.sa_solver: {"tau": 1.0, "predictor": 3, "corrector": 4, "interval": None, "bootstrap": False},
    dx.solvers.unipc: {"order": 3, "variant": "bh2", "corrector": True, "bootstrap": False, "space": "x0"},
}
NOTHING_TO_GET_WRONG = {P.eps, P.flow, P.score, P.v, P.x0, W.snr, W.uniform}
NOTHING_TO_GET_WRONG |= {dx.solvers.dpm2, dx.solvers.dpmpp_2m, dx.solvers.euler, dx.solvers.heun, dx.solvers.rk4}
ELSEWHERE = {dx.grids.fit_solver, dx.solvers.learned, dx.solvers.load_learned, dx.solvers.save_learned}
"""fit_solver takes what fit does; learned solvers are files and tables: tests/grids, tests/solvers."""

FREE = {"cond", "params", "target_params"}
"""Handed on as they are: whatever a network takes."""

WRONG = {
    "None": None,
    "a string": "zzz",
    "nan": float("nan"),
    "infinity": float("inf"),
    "a function": lambda *a, **k: None,
    "a constructor": S.edm,
    "an empty tuple": (),
    "a tuple of strings": ("a", "b"),
    "an empty array": np.zeros((0,), np.float32),
    "complex": 1 + 2j,
    "minus one": -1,
    "huge": 10**12,
    "a half": 0.5,
    "another shape": np.ones((3, 5, 7), np.float32),
    "an object": object(),
    "a dict": {"a": 1},
    "ragged": [1, [2, 3]],
}


def is_ours(error):
    """Raised in diffax's own code, as a sentence that says what is allowed."""
    frames = inspect.getinnerframes(error.__traceback__)
    inside = "diffax" in pathlib.Path(frames[-1].filename).parts and "tests" not in frames[-1].filename
    says = re.search(r"must|is missing|did you forget|takes|has none|ascend|give it|no finite", str(error))
    return isinstance(error, ValueError | TypeError) and inside and says and "\n" not in str(error)


def holed(right):
    """The array with a NaN, or an infinity, among its numbers."""
    if not isinstance(right, jax.Array | np.ndarray) or not jnp.issubdtype(right.dtype, jnp.inexact):
        return {}
    first = np.arange(right.size).reshape(right.shape) == 0
    return {f"an array with {bad}": np.where(first, np.asarray(right).dtype.type(bad), right) for bad in ("nan", "inf")}


def faults(function):
    """What goes wrong with each argument that is replaced by each wrong one."""
    found = []
    for name, right in VALID[function].items():
        for kind, value in (WRONG | holed(right)).items():
            if name in FREE:
                continue
            given = VALID[function] | {name: value}
            try:
                result = function(**given)
            except (ValueError, TypeError) as error:
                if not is_ours(error):
                    found.append(f"{name} = {kind}: {type(error).__name__}: {error}"[:200])
            except Exception as error:
                found.append(f"{name} = {kind}: {type(error).__name__}: {error}"[:200])
            else:
                leaves = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array | np.ndarray)]
                leaves = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
                if any(np.isnan(np.asarray(leaf, np.complex128)).any() for leaf in leaves):
                    found.append(f"{name} = {kind}: NaN")
                elif kind in ("nan", "a string", "complex", "an object", "a dict", "ragged", "a tuple of strings"):
                    found.append(f"{name} = {kind}: taken")
    return found


def public():
    """Every public function of the core."""
    for name in dx.__all__:
        thing = getattr(dx, name)
        if inspect.isfunction(thing):
            yield thing
        elif inspect.ismodule(thing) and thing is not dx.plot:
            yield from (f for f in (getattr(thing, n) for n in thing.__all__) if inspect.isfunction(f))


def test_all_public_functions_are_called_here():
    assert set(public()) - set(VALID) - NOTHING_TO_GET_WRONG - ELSEWHERE == set()


@pytest.mark.parametrize("function", VALID, ids=lambda f: f"{f.__module__.removeprefix('diffax.')}.{f.__name__}")
def test_wrong_arguments_are_named(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(**VALID[function])  # as it should be
        found = faults(function)
    assert not found, "\n".join(found)
