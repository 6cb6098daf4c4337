"""What every command does first: set JAX up for the machine it is on, and turn a user's mistake into one sentence."""

import ast
import contextlib
import ctypes
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

__all__ = [
    "PARSE_ERRORS",
    "check_seed",
    "config_of",
    "explain",
    "field",
    "read_workdir_flag",
    "run",
    "seconds_since_start",
    "set_up_jax",
]

_READ = time.perf_counter()

flags.DEFINE_bool("traceback", False, "On an error show where in the code it arose, not only what is wrong.")


PARSE_ERRORS = (flags.Error, AttributeError, KeyError, OSError, ImportError, SyntaxError, TypeError, ValueError)
"""What parsing a --config and its fields raises; `explain` says it in a sentence."""


def run(main: Callable[..., Any], *, positional: bool = False) -> None:
    """Parses flags and calls main(), or main(arguments) with those that are no flags if they are allowed (positional).

    A ValueError, FloatingPointError or OSError is a message on stderr and exit status 1.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and not positional:
            _fail(f"unexpected argument {argv[1]!r}: options are written --name=value")
        sys.unraisablehook = _unraisable
        try:
            set_up_jax()
            main(argv[1:]) if positional else main()
        except (ValueError, FloatingPointError, OSError) as error:
            if flags.FLAGS.traceback:
                traceback.print_exc()
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("interrupted")

    app.run(guarded, flags_parser=_parse)


def set_up_jax() -> None:
    """On a CPU one JAX device per core, since a batch split over devices uses the cores better than threads inside an
    operation do; and compiled programs are kept on disk from one run to the next.

    JAX_NUM_CPU_DEVICES, XLA_FLAGS and JAX_COMPILATION_CACHE_DIR in the environment take precedence.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # A power of two, to divide usual batch sizes; more than 8 gains little on one host.
        _update("jax_num_cpu_devices", min(8, 1 << (cores.bit_length() - 1)))
        # XLA's pool has a thread a core. A device that waits for another's gradients holds one, so that with as many
        # devices as cores whatever else wants one makes them run one after the other, in half of all steps.
        os.environ.setdefault("NPROC", str(cores + 1))
    _keep_freed_memory()
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        _update("jax_compilation_cache_dir", str(Path("~/.cache/diffax/xla").expanduser()))
        _update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a start runs many small programs


def _keep_freed_memory() -> None:
    """On a host without accelerators, has glibc keep what an operation frees for the next one. It would give large
    blocks back to the system, which clears them anew, page by page, in each step.
    """
    accelerators = [path for name in ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*") for path in Path("/dev").glob(name)]
    if not sys.platform.startswith("linux") or accelerators:
        return
    with contextlib.suppress(OSError, AttributeError):  # another libc
        arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
        libc = ctypes.CDLL(None)
        for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
            libc.mallopt(option, value)


@contextlib.contextmanager
def field(prefix: str) -> Iterator[None]:
    """Turns "steps = 0: must be ..." of the library into "config.train.steps = 0: must be ..."."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def seconds_since_start() -> float:
    """Since this process began, imports and all; where the system does not say, since this module was read."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _READ


def check_seed(name: str, seed: int) -> None:
    """Raises ValueError unless the seed is one that every generator takes."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} = {seed}: must lie in [0, 4294967295]")


def config_of(flag: Any) -> Any:
    """The config of a --config flag. Raises ValueError if it is missing."""
    config = flag.value
    if config is None:
        raise ValueError("--config is missing: give a file such as --config=experiments/configs/digits.py")
    if not isinstance(config, ml_collections.ConfigDict):  # config_flags stands something in for a missing file
        raise ValueError(f"--config = {config_flags.get_config_filename(flags.FLAGS['config'])}: there is no such file")
    return config


def read_workdir_flag(value: str | None) -> Path:
    """The --workdir of a command that reads a finished or running training run."""
    if not value:
        raise ValueError("--workdir is missing: give the directory of a training run, such as --workdir=runs/digits")
    return Path(value)


def _update(name: str, value: Any) -> None:
    with contextlib.suppress(RuntimeError):  # JAX is running already (in a notebook, in tests): its set-up stays
        jax.config.update(name, value)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            # Orbax reports each file that it writes, and each thread of its that fails; what matters is raised, too.
            flags.FLAGS.verbosity = -3  # type: ignore[assignment]  # --verbosity=0 shows it all
        return rest
    except PARSE_ERRORS as error:
        _fail(explain(error))


def explain(error: BaseException) -> str:
    """What is wrong with a --config or one of its fields, from what absl and ml_collections raise on parsing it."""
    if isinstance(error, flags.Error):
        return str(error)
    if not isinstance(error, (AttributeError, KeyError)):
        return f"--config cannot be read: {type(error).__name__}: {error}"
    text = str(error.args[0])  # so does ml_collections say that there is no such field
    with contextlib.suppress(ValueError, SyntaxError):
        text = str(ast.literal_eval(text))  # a message inside a message
    if "get_config" in text:
        return "--config cannot be read: the file must define get_config()"
    return f"--config has no field {'; '.join(text.splitlines())}"


def _unraisable(what: Any) -> None:
    """Writes of Orbax that were under way when one of them failed have nobody left to tell."""
    if "Event loop is closed" not in str(what.exc_value):
        sys.__unraisablehook__(what)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that Orbax left reading a damaged file would bury the message under their tracebacks.
    os._exit(1)
