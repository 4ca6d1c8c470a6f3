"""Start of a run on several processes: who the others are, how they meet, which GPUs each takes.

jax's cluster environments know the others (Slurm, Open MPI, TPU VMs, GKE, indexed Kubernetes
jobs); `docs/launch.md` has the command for each. Where a cluster reports one process, or where
there is no cluster, a process starts at once and waits for nobody.
"""

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fmi_jax.errors import UsageError, UserError

TIMEOUT_SECONDS = 300
"""How long the processes of a run wait for each other at the start."""

_FLAGS = "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I"


class Cluster(NamedTuple):
    """Processes that a launcher started together.

    Attributes:
      name: "ompi", "slurm", "gcetpu" (Cloud TPU VMs), "gketpu" or "k8s".
      environment: jax's class that knows the others.
      processes: number of them.
    """

    name: str
    environment: Any
    processes: int


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = TIMEOUT_SECONDS,
    lost_after_seconds: int = 100,
) -> None:
    """Join the other processes of the run, if there are any.

    What is not given is asked of the cluster that started this process. Must come before the
    first use of a device.

    Args:
      coordinator: "host:port" of process 0; None: `JAX_COORDINATOR_ADDRESS`, or the cluster's.
      num_processes: number of processes; 1: this one, alone.
      process_id: which one this is, from 0.
      timeout_seconds: time to wait for the others. After that the process ends with one
        message and exit code 1.
      lost_after_seconds: silence after which a process is lost (`peers`).

    Raises:
      UsageError: something is missing that no cluster tells, or does not fit together.
      UserError: the cluster does not answer, or the coordinator's port is taken.
    """
    if num_processes == 1:
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    gpus = None
    if coordinator is None or num_processes is None or process_id is None:
        cluster = find_cluster()
        if cluster is None:
            given = (coordinator, num_processes, process_id)
            if any(value is not None for value in given):
                raise UsageError(f"multi-host start needs all of {_FLAGS}; got {given}.")
            return
        num_processes = num_processes or cluster.processes
        if num_processes == 1:
            return
        gpus = own_gpus()
        with _asking(cluster.name):
            if process_id is None:
                process_id = int(cluster.environment.get_process_id())
            coordinator = coordinator or cluster.environment.get_coordinator_address(
                timeout_seconds, os.environ.get("JAX_COORDINATOR_PORT")
            )
    _join(str(coordinator), num_processes, process_id, gpus, timeout_seconds, lost_after_seconds)


def find_cluster() -> Cluster | None:
    """The cluster that started this process; None: it was started by hand.

    Raises:
      UsageError: another launcher started several processes, and jax cannot learn where they
        meet.
      UserError: the cluster does not answer.
    """
    for name, environment in _environments().items():
        if name == "k8s":
            if "JOB_COMPLETION_INDEX" not in os.environ:
                continue  # a pod of its own, or one of many that do not know each other
            _check_kubernetes()
        with _asking(name):
            present = environment.is_env_present()
            # Of a single host jax would ask a metadata server, which there may be none of.
            alone = name == "gketpu" and _single_tpu_host()
            count = int(environment.get_process_count()) if present and not alone else 1
        if name == "slurm":
            # SLURM_NTASKS, which jax reads, is in an interactive step what could be started.
            count = int(os.environ.get("SLURM_STEP_NUM_TASKS", count))
        if present:
            return Cluster(name, environment, count)
        if name == "ompi":
            _check_mpi("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    _check_mpi("PMI_SIZE", "PMI_RANK")
    return None


def neighbours() -> tuple[int, int]:
    """Number of the run's processes on this machine, and the place of this one, from 0.

    As Open MPI or Slurm tell; elsewhere this process is alone.
    """
    env = os.environ
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in env:
        return int(env["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(env["OMPI_COMM_WORLD_LOCAL_RANK"])
    if "SLURM_STEP_TASKS_PER_NODE" in env and "SLURM_LOCALID" in env:
        tasks: list[int] = []  # "4(x2),3": of three nodes
        for part in env["SLURM_STEP_TASKS_PER_NODE"].split(","):
            count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()).groups()  # type: ignore[union-attr]
            tasks += [int(count)] * int(times or 1)
        return tasks[int(env.get("SLURM_NODEID", 0))], int(env["SLURM_LOCALID"])
    return 1, 0


def own_gpus() -> list[int] | None:
    """Which of the visible GPUs this process takes; None: all of them.

    A process alone on its machine takes all. Several take equal parts in turn, unless each sees
    other GPUs than its neighbours (`srun --gpus-per-task`): then all that it sees.
    """
    env, (count, place) = os.environ, neighbours()
    if count == 1 or "JAX_LOCAL_DEVICE_IDS" in env:  # jax heeds the variable
        return None
    visible = env.get("CUDA_VISIBLE_DEVICES")
    gpus = _count_gpus(Path("/")) if visible is None else len([x for x in visible.split(",") if x])
    if gpus == 0:
        return [place]  # of another make; without any it does not matter
    least = max(count, int(env.get("SLURM_GPUS_ON_NODE") or 0))
    if "SLURM_GPUS_PER_TASK" in env or gpus < least:
        return None
    share = gpus // count
    return [*range(place * share, (place + 1) * share)]


def unused_devices(root: Path = Path("/")) -> str | None:
    """One line that says so if the processes on this machine use fewer devices than it has.

    Asks files alone. None where all are used, where `JAX_PLATFORMS` names another kind, and on
    all but the first of several processes of a machine.

    Args:
      root: folder that holds `dev`.
    """
    wanted = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    for platform, what, extra, there in (
        ("gpu", "GPUs", "cuda12", _count_gpus(root)),
        ("tpu", "TPU chips", "tpu", _count_tpu_chips()),
    ):
        if wanted and not {platform, "cuda" if platform == "gpu" else ""} & {*wanted.split(",")}:
            continue
        used = sum(device.platform == platform for device in jax.local_devices())
        count, place = neighbours()
        if used * count >= there or place != 0:
            continue
        hidden = [
            f"{name}={os.environ[name]}"
            for name in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS", "TPU_VISIBLE_CHIPS")
            if name in os.environ
        ]
        why = f" ({', '.join(hidden)})" if hidden else ""
        if used == 0 and not hidden:
            why = f": is jax installed for them (pip install 'jax[{extra}]')?"
        each = f" in each of its {count} processes" if count > 1 else ""
        return f"this machine has {there} {what}, and the run uses {used} of them{each}{why}"
    return None


def _join(
    coordinator: str,
    processes: int,
    place: int,
    gpus: list[int] | None,
    timeout_seconds: int,
    lost_after_seconds: int,
) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator_address={coordinator}: expected HOST:PORT.")
    if not 0 <= place < processes:
        raise UsageError(
            f"--process_id={place}: expected 0 to {processes - 1}, for there are {processes}"
            " processes."
        )
    if place == 0:
        _check_port(int(port))
    # jax's client aborts the process, with a stack trace, when the others do not come. So this
    # gives up first.
    timer = threading.Timer(
        timeout_seconds, _give_up, (host, int(port), processes, place, timeout_seconds)
    )
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            place,
            local_device_ids=gpus,
            cluster_detection_method="deactivate",  # it would give every task of Slurm one GPU
            initialization_timeout=timeout_seconds + 60,
            heartbeat_timeout_seconds=2 * lost_after_seconds + 60,  # `peers` is to notice first
        )
    finally:
        timer.cancel()


def _give_up(host: str, port: int, processes: int, place: int, seconds: int) -> None:
    """End this process, whose main thread waits inside jax."""
    try:
        socket.create_connection((host, port), timeout=5).close()
        message = (
            f"fewer than {processes} processes met at {host}:{port} within {seconds} s: expected"
            f" each to be started with {processes} as the number of processes, and with one of the"
            f" numbers 0 to {processes - 1} that no other has (this is number {place})"
        )
    except OSError as error:
        message = (
            f"process 0 of the run did not answer at {host}:{port} within {seconds} s ({error}):"
            " expected it to be running on that host, and the port to be open to the others"
        )
    print(f"error: {message}.", file=sys.stderr, flush=True)
    os._exit(1)


def _check_port(port: int) -> None:
    """Raise `UserError` if the port is taken: jax's service would crash."""
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} of this machine"
            f" ({os.strerror(error.errno or 0)}): expected a free one, where the processes meet;"
            " set --coordinator_address or JAX_COORDINATOR_PORT to another on all of them."
        ) from error


def _single_tpu_host() -> bool:
    env = os.environ
    hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    return "," not in hosts and "MEGASCALE_NUM_SLICES" not in env


def _check_mpi(size: str, rank: str) -> None:
    """Raise `UsageError` if MPI started several processes: each would train by itself."""
    count = os.environ.get(size, "1")
    if count != "1":
        raise UsageError(
            f"{size}={count}, but nothing here says where these processes meet: expected"
            f" --coordinator_address=HOST:PORT --num_processes=${size} --process_id=${rank}, or"
            " --num_processes=1 for runs that are each alone."
        )


def _check_kubernetes() -> None:
    """Raise `UsageError` if the package that finds the other pods of a job is missing."""
    try:
        import kubernetes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "this pod belongs to an indexed Kubernetes job, and the package that finds the others"
            f" is missing: expected pip install 'jax[k8s]', or {_FLAGS}; --num_processes=1 if the"
            " pods are runs that are each alone."
        ) from error


@contextmanager
def _asking(cluster: str) -> Iterator[None]:
    """Turn whatever jax raises when a cluster does not answer into one message."""
    try:
        yield
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the other processes cannot be asked for on {cluster!r} ({said[:300]}): expected an"
            f" answer, or {_FLAGS}; --num_processes=1 starts this process alone."
        ) from error


def _count_gpus(root: Path) -> int:
    return len([*root.glob("dev/nvidia[0-9]*")])


# What follows is all that reaches into jax's private modules.


def _environments() -> dict[str, Any]:
    """jax's cluster environments by name, in jax's order.

    `jax.distributed.initialize` asks them, but cannot be asked whether there is anybody to wait
    for.
    """
    from jax._src import clusters

    return {
        "ompi": clusters.OmpiCluster,
        "slurm": clusters.SlurmCluster,
        "gcetpu": clusters.GceTpuCluster,
        "gketpu": clusters.GkeTpuCluster,
        "k8s": clusters.K8sCluster,
    }


def _count_tpu_chips() -> int:
    from jax._src import hardware_utils

    return hardware_utils.num_available_tpu_chips_and_device_id()[0]
