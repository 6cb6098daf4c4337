"""Eight CPU devices for the whole session, set before JAX starts, and every compiled program kept between runs.

All is in the environment, so that the commands which tests start find it too.
"""

import os
import tempfile
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "NPROC": "16",  # threads of XLA's pool: a device that waits for another's numbers holds one
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "diffax-tests-xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # most are small
}

pytest_plugins = ["tests.timing"]
