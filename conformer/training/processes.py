"""Runs of several processes: they find each other, and report when one of them is lost.

JAX ends a process whose peers are gone, by an abort from a thread of its own or by an error in a collective, whichever
comes first. So each process is the child of a small one, which needs no JAX and outlives it to say what happened.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import jax

from conformer import system
from conformer.config import ConfigError

AUTO = "auto"
LOST = 75  # exit status; EX_TEMPFAIL of sysexits.h: the same command may succeed later
HEARTBEAT_SECONDS = 20  # one that is silent for so long is lost
JOIN_SECONDS = 300  # for all to have started

_CHILD = "EDGE_CONFORMER_CHILD"  # environment variable of the process that computes
# What the messages of failed collectives, barriers and connections between processes have in common.
_SYMPTOMS = (
    "Gloo",
    "NCCL",
    "coordination",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Barrier",
    "heartbeat",
    "Socket closed",
)


def in_child(coordinator: str | None) -> None:
    """Runs this command again in a child, where `join` is called, and exits as it does. Returns in the child.

    Without a coordinator there is one process, and nothing to do.
    """
    if coordinator is None or _CHILD in os.environ:
        return
    environment = os.environ | {_CHILD: str(os.getpid())}
    with subprocess.Popen([sys.executable, *sys.argv], env=environment) as child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
        signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
        status = child.wait()
    if status == LOST or status == -signal.SIGABRT:
        name = os.path.basename(sys.argv[0])
        print(
            f"{name}: another process of this run was lost, or could not be reached: the same command, on as many "
            "processes as are left (--num-processes; none for one), resumes from the newest checkpoint",
            file=sys.stderr,
        )
        sys.exit(LOST)
    sys.exit(status if status >= 0 else 128 - status)


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects to the other processes of a run; before JAX's first computation.

    Args:
        coordinator: "host:port" of process 0, "auto" to let JAX find what a cluster says (Slurm, Kubernetes, MPI, TPU
            pods), or None for a run of one process.
        num_processes: how many there are; None with "auto".
        process_id: which of them this is, from 0; None with "auto".

    Raises:
        ConfigError: for incomplete arguments, or where there is no cluster to be found.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ConfigError("--num-processes and --process-id need --coordinator=host:port, the address of process 0")
        return
    if coordinator != AUTO and (num_processes is None or process_id is None or not 0 <= process_id < num_processes):
        raise ConfigError(
            f"--coordinator={coordinator} needs --num-processes and --process-id, from 0 to one less; or "
            "--coordinator=auto, where a cluster's scheduler says so"
        )
    if _CHILD in os.environ and not system.die_with(int(os.environ[_CHILD])):
        os._exit(LOST)
    address = None if coordinator == AUTO else coordinator
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:  # nothing that JAX knows runs here
        raise ConfigError(f"--coordinator={coordinator}: {error}") from None


@contextlib.contextmanager
def leaving_when_others_are_lost() -> Iterator[None]:
    """Exits at once, with status LOST, where a collective inside fails because a process of the run is gone."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not any(symptom in str(error) for symptom in _SYMPTOMS):
            raise
        print(" ".join(str(error).split())[:300], file=sys.stderr, flush=True)
        os._exit(LOST)  # at a regular exit JAX would wait for the others
