"""Start on several processes: who is found, which GPUs each takes, and what ends a wait."""

import http.server
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import pytest
import runs
from jax._src import clusters, hardware_utils
from jax._src.clusters import cloud_tpu_cluster

from fmi_jax import cli
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError, UserError
from fmi_jax.run import launch, runtime, session

# Variables that launchers set.
LAUNCHERS = (
    *("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_COMPLETION_INDEX"),
    *("GCE_METADATA_IP", "CUDA_VISIBLE_DEVICES", "JAX_COORDINATOR", "JAX_LOCAL_DEVICE_IDS"),
)
SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "gpu[07-09],gpu12",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2,1",
    "SLURM_NTASKS": "11",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_PROCID": "5",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
GKE = {
    "TPU_SKIP_MDS_QUERY": "true",
    "TPU_WORKER_HOSTNAMES": "localhost,worker-1,worker-2,worker-3",
    "TPU_WORKER_ID": "2",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, whatever these tests were started by."""
    for name in [*os.environ]:
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(launch, "_count_gpus", lambda root: 0)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What jax is started with: coordinator, number of processes, which one, GPUs."""
    calls = []

    def initialize(coordinator, processes, place, *, local_device_ids, **options) -> None:
        assert options["cluster_detection_method"] == "deactivate"
        assert options["initialization_timeout"] > launch.TIMEOUT_SECONDS
        calls.append((coordinator, processes, place, local_device_ids))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def set_all(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_jax_still_has_the_clusters_that_are_asked() -> None:
    ours = list(launch._environments().values())
    theirs = [c for c in clusters.ClusterEnv._cluster_types if not c.opt_in_only_method]
    assert [c for c in theirs if c is not cloud_tpu_cluster.BaseTpuCluster] == ours
    for cluster in ours:
        for method in ("is_env_present", "get_process_count", "get_process_id"):
            assert callable(getattr(cluster, method))
    assert launch._count_tpu_chips() == 0
    assert isinstance(cloud_tpu_cluster.running_in_cloud_tpu_vm, bool)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (SLURM, ("gpu07:61440", 11, 5, [1])),  # as jax would, of GPUs that this cannot count
        (SLURM | {"JAX_COORDINATOR_PORT": "7"}, ("gpu07:7", 11, 5, [1])),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "a:9"}, ("a:9", 11, 5, [1])),
        # Four GPUs for four tasks, for one, for two.
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("gpu07:61440", 11, 5, [1])),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"},
         ("gpu07:61440", 11, 5, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NODEID": "2"},
         ("gpu07:61440", 11, 5, [2, 3])),
        # GPUs that only this task sees.
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"},
         ("gpu07:61440", 11, 5, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "4"},
         ("gpu07:61440", 11, 5, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_LOCAL_DEVICE_IDS": "3"},
         ("gpu07:61440", 11, 5, None)),
        (OMPI | {"CUDA_VISIBLE_DEVICES": "0,1"}, ("10.96.0.1:62624", 4, 3, [1])),
    ],
)  # fmt: skip
def test_a_cluster_says_who_the_others_are(
    monkeypatch: pytest.MonkeyPatch, joined: list, changes: dict[str, str], expected: tuple
) -> None:
    set_all(monkeypatch, changes)
    launch.start()
    assert joined == [expected]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # A batch script that runs the program without srun; an interactive step; one task.
        {k: v for k, v in SLURM.items() if "STEP" not in k},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        OMPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        GKE | {"TPU_WORKER_HOSTNAMES": "localhost"},
        # A pod that is no part of an indexed job.
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_process_alone_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, joined: list, changes: dict[str, str]
) -> None:
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", "TPU_WORKER_ID" in changes)
    set_all(monkeypatch, changes)
    launch.start()
    assert joined == []


def test_who_asks_to_be_alone_is(monkeypatch: pytest.MonkeyPatch, joined: list) -> None:
    set_all(monkeypatch, SLURM | KUBERNETES)
    launch.start(num_processes=1)
    assert joined == []


def test_a_gke_pod_of_tpus(monkeypatch: pytest.MonkeyPatch, joined: list) -> None:
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    set_all(monkeypatch, GKE | KUBERNETES | {"MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
            | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"})  # fmt: skip
    launch.start()
    assert joined == [("localhost:8482", 8, 6, None)]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Attributes that the metadata server of a TPU VM tells; this test's process is on one."""
    attributes: dict[str, str] = {}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = attributes.get(self.path.rpartition("/attributes/")[2])
            right = value is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if right else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield attributes
        server.shutdown()


@pytest.mark.parametrize(
    ("workers", "tpu_env", "expected"),
    [
        ("localhost,10.0.0.3,10.0.0.4,10.0.0.5", "ZONE: 'z'", [("localhost:8482", 4, 3, None)]),
        ("a:b:127.0.0.1,c:d:10.0.0.3,e:f:10.0.0.4,g:h:10.0.0.5", "",
         [("127.0.0.1:8482", 4, 3, None)]),
        ("localhost", "", []),  # one TPU VM
    ],
)  # fmt: skip
def test_a_pod_of_cloud_tpu_vms(
    metadata: dict[str, str], joined: list, workers: str, tpu_env: str, expected: list
) -> None:
    metadata["agent-worker-number"] = "3"
    metadata["worker-network-endpoints"] = workers
    metadata["tpu-env"] = tpu_env
    launch.start()
    assert joined == expected


def test_a_tpu_that_is_no_cloud_vm(
    metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch, joined: list
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    launch.start()
    assert joined == []


def test_a_metadata_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, joined: list, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"on 'gcetpu' \(ConnectionError.*--num_processes=1 starts"):
        launch.start()
    assert joined == []
    assert cli.main(["doctor"]) == 0
    assert "on 'gcetpu'" in capsys.readouterr().out


def test_an_indexed_kubernetes_job(monkeypatch: pytest.MonkeyPatch, joined: list) -> None:
    """With as much of the package `kubernetes` as jax uses."""
    metadata = SimpleNamespace(labels={"job-name": "train"}, name="train-2-x", owner_references=[
        SimpleNamespace(controller=True, kind="Job")])  # fmt: skip
    pod = SimpleNamespace(metadata=metadata, spec=SimpleNamespace(subdomain="jaxpods"))
    job = SimpleNamespace(
        metadata=SimpleNamespace(name="train", labels={}), spec=SimpleNamespace(parallelism=3)
    )
    package = ModuleType("kubernetes")
    package.config = SimpleNamespace(load_incluster_config=lambda: None)  # type: ignore[attr-defined]
    package.client = SimpleNamespace(  # type: ignore[attr-defined]
        CoreV1Api=lambda: SimpleNamespace(
            list_namespaced_pod=lambda **_: SimpleNamespace(items=[pod])
        ),
        BatchV1Api=lambda: SimpleNamespace(read_namespaced_job=lambda **_: job),
        exceptions=SimpleNamespace(ApiException=KeyError),
    )
    monkeypatch.setitem(sys.modules, "kubernetes", package)
    monkeypatch.setattr(clusters.K8sCluster, "_namespace", lambda: "default")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    set_all(monkeypatch, KUBERNETES | {"HOSTNAME": "train-2"})
    launch.start()
    assert joined == [("train-0.jaxpods:55527", 3, 2, None)]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (KUBERNETES, (), r"indexed Kubernetes job.* pip install 'jax\[k8s\]'"),
        # Open MPI 5 no longer says where its processes meet; nor does another MPI.
        ({k: v for k, v in OMPI.items() if "hnp" not in k} | SLURM, (),
         r"OMPI_COMM_WORLD_SIZE=4, but .*--process_id=\$OMPI_COMM_WORLD_RANK"),
        ({"PMI_SIZE": "2"}, (), r"PMI_SIZE=2, but .*--num_processes=1 for runs"),
        ({}, ("a:1", 2, None), r"needs all of --coordinator_address=HOST:PORT.*; got \('a:1', 2"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, (), r"needs all of .*got \('a:1', None, None\)"),
        ({}, ("a:1", 2, 2), "--process_id=2: expected 0 to 1"),
        ({}, ("a", 2, 1), "--coordinator_address=a: expected HOST:PORT"),
    ],
)  # fmt: skip
def test_what_cannot_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, joined: list, changes: dict, arguments: tuple, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    set_all(monkeypatch, changes)
    with pytest.raises(UsageError, match=message):
        launch.start(*arguments)
    assert joined == []


@pytest.mark.parametrize(
    ("gpus", "chips", "platforms", "local", "changes", "expected"),
    [
        (0, 0, "", ["cpu"], {}, None),
        (4, 0, "", ["gpu"] * 4, {}, None),
        (4, 0, "cpu", ["cpu"], {}, None),  # asked for
        (4, 0, "", ["cpu"], {}, "has 4 GPUs, and the run uses 0 of them: .*'jax.cuda12.'"),
        (4, 0, "", ["gpu"], {"CUDA_VISIBLE_DEVICES": "2"},
         r"has 4 GPUs, .* uses 1 of them \(CUDA_VISIBLE_DEVICES=2\)"),
        (4, 0, "cuda,cpu", ["gpu"], SLURM, None),  # four tasks with one each
        (8, 0, "", ["gpu"], SLURM | {"SLURM_LOCALID": "0"},
         "has 8 GPUs, .* uses 1 of them in each of its 4 processes"),
        (8, 0, "", ["gpu"], SLURM, None),  # the task beside it says so
        (0, 4, "tpu,cpu", ["tpu"] * 4, {}, None),
        (0, 4, "", ["cpu"], {}, "has 4 TPU chips, and the run uses 0 .*'jax.tpu.'"),
    ],
)  # fmt: skip
def test_devices_that_a_run_leaves_unused_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, chips: int, platforms: str,
    local: list[str], changes: dict[str, str], expected: str | None,
) -> None:  # fmt: skip
    monkeypatch.undo()
    set_all(monkeypatch, changes)
    (tmp_path / "dev").mkdir()
    for name in ["nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(gpus))]:
        (tmp_path / "dev" / name).touch()
    found = (chips, None)
    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: found)
    devices = [SimpleNamespace(platform=platform) for platform in local]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", platforms)
        line = launch.unused_devices(tmp_path)
    finally:
        jax.config.update("jax_platforms", before)
    if expected is None:
        assert line is None
    else:
        assert line is not None
        assert re.search(expected, line), line


def test_a_run_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "unused_devices", lambda: "this machine has more")
    config = ExperimentConfig()
    config.data.name, config.data.data_dir = "aptos2019", str(tmp_path)
    config.train.batch_size = 8
    with pytest.raises(UserError, match="aptos2019"):
        session.begin(config, tmp_path / "run")
    assert capsys.readouterr().err == "note: this machine has more\n"


PROGRAM = """
import sys
from fmi_jax.run import launch
from fmi_jax.guard import guarded


def main():
    coordinator, processes, place, seconds = sys.argv[1:]
    if coordinator == "ask":
        launch.start(timeout_seconds=int(seconds))
    else:
        launch.start(coordinator, int(processes), int(place), int(seconds))
    import jax
    print("process", jax.process_index(), "of", jax.process_count())


sys.exit(guarded(main))
"""


def test_real_processes_meet_or_say_why_not() -> None:
    def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            env=runs.environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with socket.create_server(("", 0)) as taken, socket.socket() as free, socket.socket() as other:
        for each in (free, other):
            each.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in (taken, free, other)]
        free.close()
        other.close()
        slurm = SLURM | {
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NODEID": "0",
            "JAX_COORDINATOR_PORT": str(ports[1]),
        }
        met = [
            start("ask", 0, 0, 60, **slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
            for i in range(2)
        ]
        blocked = start(f"127.0.0.1:{ports[0]}", 2, 0, 3)
        lonely = start(f"127.0.0.1:{ports[2]}", 2, 0, 3)
        assert [runs.finish(process)[:2] for process in met] == [
            (0, f"process {i} of 2\n") for i in range(2)
        ]
        for process, message in (
            (blocked, f"process 0 cannot listen on port {ports[0]} .*Address already in use"),
            (lonely, "fewer than 2 processes met at 127.0.0.1:.* within 3 s"),
        ):
            code, _, err = runs.finish(process)
            assert (code, err.count("\n")) == (1, 1), err
            assert re.match(f"error: {message}", err), err
    code, _, err = runs.finish(start(f"127.0.0.1:{ports[2]}", 2, 1, 2))
    assert (code, err.count("\n")) == (1, 1), err
    assert re.match("error: process 0 of the run did not answer at .* within 2 s", err), err


def test_a_limit_of_memory_is_noted_before_xla_ends_the_process_at_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, said in ((resource.RLIM_INFINITY, ""), (3 * 2**30, "note: this process may use 3 ")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        runtime.configure()
        err = capsys.readouterr().err
        assert err.startswith(said)
        assert ("ulimit -v" in err) is bool(said)
