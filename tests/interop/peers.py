"""PyTorch and diffusers, which these tests compare with, are an optional extra."""

import importlib
import math
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import pytest


def peer(name: str) -> ModuleType:
    """The module, or else a skip: of the test, or of the file if called at its top.

    With DIFFAX_PEERS=1, as in continuous integration, its absence is a failure.
    """
    if os.environ.get("DIFFAX_PEERS") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)


KEPT = ("norm", "out_conv", "aux_conv", "out_gain", "conv_out", "quant_conv", "qkv", "to_q", "to_k", "to_v")
KEPT += ("ff.net.0", "proj_out")
"""Parts of the names of parameters that may be of order one while all that is normalised is small."""


def randomised(model: Any, size: float = 1.0) -> Any:
    """A PyTorch model with all parameters drawn anew, also those that start at zero or one: signals are of order one.

    size: of the layers whose outputs are normalised later; with 1e-3 the epsilon of normalisation counts.
    """
    torch = peer("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                drawn = drawn / math.sqrt(parameter[0].numel())
            else:  # biases, and gains
                drawn = 0.3 * drawn + (0 if name.endswith("bias") else 1)
            parameter.copy_(drawn * (1 if any(part in name for part in KEPT) else size))
    return model.eval()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """jax.jit in half the time, for what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
