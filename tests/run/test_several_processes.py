"""Real processes that meet on the loopback: whatever the mesh, they do what one process does.

The meshes are those that go wrong if rows are dealt by process number: the order of a TPU pod's
torus, which comes back to a process, and a "model" axis over several processes.
"""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import one_of_several
import pytest
import runs
from one_of_several import STEPS, Job
from tolerances import SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.artifacts.result import Result
from fmi_jax.data import loader
from fmi_jax.data.prepared import open_or_draw
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43, 9 and 9 prepared images of two classes."""
    folder = tmp_path_factory.mktemp("squares")
    runs.draw_squares(folder / "raw")
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    return folder / "data"


def own_config(squares: Path, folder: Path) -> Path:
    """A config with a data folder of its own: features that one run keeps serve no other."""
    shutil.copytree(squares, folder / "data")
    return runs.write_config(folder, folder / "data")


def carried_out(job: Job) -> list[dict[str, np.ndarray]]:
    """What each process of the job found."""
    folder = Path(job.folder)
    (folder / "job.json").write_text(json.dumps(dataclasses.asdict(job)))
    flags = (f"--xla_force_host_platform_device_count={job.devices}", *runs.FAST)
    program = [sys.executable, one_of_several.__file__, str(folder / "job.json")]
    processes = [
        subprocess.Popen(
            [*program, str(index)],
            env=runs.environment() | {"XLA_FLAGS": " ".join(flags)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(job.processes)
    ]
    try:
        for code, out, err in map(runs.finish, processes):
            assert code == 0, f"{out}\n{err}"
    finally:
        for process in processes:
            process.kill()
    return [dict(np.load(folder / f"{index}.npz")) for index in range(job.processes)]


def scalars(workdir: Path, name: str) -> np.ndarray:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([row[name] for row in rows if name in row])


@pytest.mark.parametrize(
    ("job", "held", "read"),
    [
        # As a row of a v5e-16 looks to two hosts.
        ({"processes": 2, "devices": 2, "order": (0, 2, 3, 1), "model": 1, "batch_size": 8,
          "runs": ("finetune", "probe_grid")}, (0, 1, 1, 0), 4),
        # As `srun --ntasks=2` with one GPU each. Both hold every image, so 3 in each of two
        # micro-batches need not be divided by the number of processes.
        ({"processes": 2, "devices": 1, "order": (0, 1), "model": 2, "batch_size": 6,
          "runs": ("finetune", "cka", "timing")}, (0, 1), 6),
        ({"processes": 4, "devices": 1, "order": (2, 0, 3, 1), "model": 2, "batch_size": 10,
          "runs": ()}, (2, 0, 3, 1), 5),
    ],
    ids=["two that come back", "two along model", "four along both"],
)  # fmt: skip
def test_several_processes_do_what_one_does(
    squares: Path, tmp_path: Path, job: dict, held: tuple[int, ...], read: int
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    config = one_of_several.config_of(own_config(squares, one), job["batch_size"])
    path = own_config(squares, several)
    found = carried_out(Job(**job, port=free_port(), config=str(path), folder=str(several)))

    dataset = open_or_draw(squares, "squares", 16)
    size = config.train.batch_size
    train = loader.train_batches(dataset, batch_size=size, seed=0, start_step=5, threads=1)
    expected = {
        "train": [next(train) for _ in range(STEPS)],
        "val": [*loader.eval_batches(dataset, "val", batch_size=size, threads=1)],
    }
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    alone = one_of_several.features_of(config, mesh, tmp_path / "features")["features"]
    for process in found:
        assert tuple(process["held"]) == held
        assert set(process["read"]) == {read}  # and no more: memory is that of its own devices
        for kind, batches in expected.items():
            for name in ("inputs", "labels", "mask", "index"):
                whole = np.stack([batch[name] for batch in batches])  # type: ignore[literal-required]
                np.testing.assert_array_equal(process[f"{kind} {name}"], whole)
        np.testing.assert_allclose(process["features"], alone, atol=SAME_FLOAT32 * alone.max())

    with mock.patch.object(parallel, "make_mesh", return_value=mesh):
        for name in set(job["runs"]) - {"timing"}:
            one_of_several.carry_out(name, config, one / name)
    for name in {"finetune", "probe_grid"} & {*job["runs"]}:
        mine, theirs = several / name, one / name
        loss = "train/loss" if name == "finetune" else "lr0.05_seed0/train/loss"
        assert len(scalars(mine, loss)) == 4
        np.testing.assert_allclose(scalars(mine, loss), scalars(theirs, loss), rtol=1e-4)
        for split in ("val", "test"):
            values = getattr(Result.read(mine), split).values
            assert values == pytest.approx(getattr(Result.read(theirs), split).values, rel=1e-4)
    if "cka" in job["runs"]:
        mine, theirs = (
            Result.read(folder / "cka").finding.values["pairs"] for folder in (several, one)
        )
        np.testing.assert_allclose(mine[0]["cka"], theirs[0]["cka"], atol=1e-4)
