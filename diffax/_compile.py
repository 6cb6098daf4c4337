"""What XLA's compiler for CPUs has to be told: which arrays to make once, not again in each operation that reads them.

It fuses cheap operations into every one of their readers. Of a network that makes it normalise, concatenate and
transpose the same activations several times, in an order of memory that suits none of them. An optimization barrier
says where to stop, but is by default dropped before operations are fused.
"""

from typing import Any

import jax

__all__ = ["kept", "options"]


def kept(tree: Any) -> Any:
    """The same arrays, written to memory before what follows reads them; on a CPU, under `options`."""
    return jax.lax.optimization_barrier(tree) if jax.default_backend() == "cpu" else tree


def options() -> dict[str, Any] | None:
    """For jax.jit(compiler_options=...): on a CPU barriers hold until operations have been fused."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else None
