"""Several processes as one run, through JAX's own distributed runtime; and the signal that ends one in order.

On SLURM, Open MPI and TPU pods under Kubernetes the same line on every host is enough: its environment says who is who.
On Cloud TPU VMs give --distributed; elsewhere tell each process where the first one listens:

    python -m experiments.train ... --coordinator=host0:1234 --processes=2 --process=0      # and 1 on the other host

The workdir must be one directory that all processes see. Only process 0 writes logs; all take part in saving. When a
process dies the others stop with an error after --heartbeat seconds; the same lines started again go on.
"""

import os
import signal
import threading
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils

__all__ = ["Preemption", "join", "wait_for_all"]

COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for a run of several processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this one is, from 0.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Let JAX find out the processes of the run, as on Cloud TPU VMs.")
HEARTBEAT = flags.DEFINE_integer("heartbeat", 60, "Seconds without a sign of life after which a process is dead.")


def join() -> None:
    """Joins the processes of this run, if it has several. Raises ValueError for flags that do not fit together."""
    host, count, mine = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if HEARTBEAT.value < 1:
        raise ValueError(f"--heartbeat = {HEARTBEAT.value}: must be at least 1 second")
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT.value}
    if host is None and count is None and mine is None:
        if DISTRIBUTED.value or _launched_as_several():
            jax.distributed.initialize(**patience)
        return
    if host is None or count is None or mine is None:
        given = {"coordinator": host, "processes": count, "process": mine}
        missing = " and ".join(f"--{name}" for name, value in given.items() if value is None)
        raise ValueError(f"{missing} missing: --coordinator, --processes and --process go together")
    if count < 1:
        raise ValueError(f"--processes = {count}: must be at least 1")
    if not 0 <= mine < count:
        raise ValueError(f"--process = {mine}: must lie in [0, {count - 1}]")
    if ":" not in host:
        raise ValueError(f"--coordinator = {host}: must be host:port")
    if count > 1:
        jax.distributed.initialize(host, count, mine, **patience)


def wait_for_all(name: str) -> None:
    """To be called by every process once its program is compiled, before the first run of it: on CPUs a process that
    comes to a collective more than 30 seconds before another gives up, and one that has compiled the program in an
    earlier run comes that much sooner.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _launched_as_several() -> bool:
    """Whether a launcher that JAX knows started more than one process."""
    counts = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    several = any(count.isdecimal() and int(count) > 1 for count in counts)
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


class Preemption:
    """Whether SIGTERM asked this run to end: `at(step)` is true on all processes at the same step, soon after one of
    them got the signal. A context manager; a second signal ends the process as it would without it.
    """

    def __init__(self) -> None:
        self._told = False
        self._mine = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if self._mine:
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._mine:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, *_: Any) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def at(self, step: int) -> bool:
        """To be asked by every process at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told
