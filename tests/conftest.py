"""Eight CPU devices for the whole session, set before JAX starts, and compiled programs kept between runs."""

import tempfile
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "diffax-tests-xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
