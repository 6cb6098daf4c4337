"""The end of a run in a few lines: what two runs are compared by."""

import hashlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffax._files import whole
from diffax.training.sharding import to_host

__all__ = ["environment", "fingerprint", "read_json", "write_json"]


def fingerprint(tree: Any) -> str:
    """SHA-256 over the leaves of a tree of arrays: sorted path order, raw little-endian bytes.

    The path of a leaf is its keys joined by "/". Two trees of one structure have equal fingerprints if, and but for
    chance only if, they are equal to the bit. Of arrays that are spread over processes, all processes must ask.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    digest = hashlib.sha256()
    for path in sorted(named):
        array = np.ascontiguousarray(to_host(named[path]))
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """What a figure should stand beside: the date, the command, the versions and the devices that made it."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError naming the file if it holds none."""
    try:
        value = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds {type(value).__name__}, not an object")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON whole or not at all, also if the process is killed meanwhile."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
