"""The program of one process among several that run together, for `test_several_processes`.

`python one_of_several.py JOB INDEX`: JOB is a JSON file with the keys of `Job`.
"""

import copy
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import short_runs
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.config import ExperimentConfig
from fmi_jax.data import loader
from fmi_jax.data.prepared import open_or_draw
from fmi_jax.protocols.heads.head_grid import ProbeGridConfig
from fmi_jax.run import conclusion, experiment, features, launch
from fmi_jax.run.network import pretrained
from fmi_jax.settings import OptimConfig

STEPS = 3


@dataclasses.dataclass(frozen=True)
class Job:
    """What the processes do together.

    Attributes:
      port: port of the coordinator.
      processes: how many there are.
      devices: devices of each.
      order: devices in the order of the mesh, by their number.
      model: size of the mesh's "model" axis.
      batch_size: images per step.
      runs: names of `RUNS` to carry out.
      config: path of the config file.
      folder: folder of the results.
    """

    port: int
    processes: int
    devices: int
    order: tuple[int, ...]
    model: int
    batch_size: int
    runs: tuple[str, ...]
    config: str
    folder: str


def config_of(path: Path, batch_size: int, model: int = 1) -> ExperimentConfig:
    """A config of four steps with two validations, and with two micro-batches."""
    config = short_runs.read_config(path)
    config.train.max_steps = 4
    config.train.eval_every_epochs = 0.4
    config.train.bootstrap_samples = 0
    config.train.batch_size = batch_size
    config.train.model_parallel = model
    config.optim.accumulate = 2
    config.augment.jitter_probability = 0.0  # takes long to compile
    return config


def finetune(config: ExperimentConfig) -> None:
    """Keys of augmentation are by place in the batch: rows in another order are another run."""
    config.protocol = "finetune"


def probe_grid(config: ExperimentConfig) -> None:
    """Features are computed once, and batches are cut from them."""
    config.protocol = "probe_grid"
    config.backbone.drop_path = 0.0
    config.optim = OptimConfig(accumulate=2)
    config.probe_grid = ProbeGridConfig(learning_rates=(3e-3, 5e-2), seeds=1, cached=True)


def cka(config: ExperimentConfig) -> None:
    """Batches of given rows, the last of them padded."""
    config.protocol = "cka"
    config.cka.batch_size = 9


def timing(config: ExperimentConfig) -> None:
    """One device of each process by itself."""
    config.protocol = "timing"
    config.timing.reference = "deit_nano"
    config.timing.repeats = 1
    config.timing.batch_size = 2


RUNS = {run.__name__: run for run in (finetune, probe_grid, cka, timing)}


def carry_out(name: str, config: ExperimentConfig, workdir: Path) -> None:
    """A whole run, without its report."""
    config = copy.deepcopy(config)
    RUNS[name](config)
    seal = RunCheckpoints._seal

    def slowly(self: RunCheckpoints, step: int) -> None:
        time.sleep(1)  # the others wait for the one process that seals
        seal(self, step)

    late = mock.patch.object(RunCheckpoints, "_seal", slowly)
    with late, mock.patch.object(conclusion, "write_report"):
        experiment.run(config, workdir)


def whole_batches(config: ExperimentConfig, mesh: Mesh) -> dict[str, np.ndarray]:
    """Batches of training and evaluation as the devices see them, and the images read for each."""
    data = config.data
    dataset = open_or_draw(Path(data.data_dir), data.name, data.prepared_size)
    size = config.train.batch_size
    places = parallel.held_places(mesh, size)
    train = loader.train_batches(
        dataset, batch_size=size, seed=config.train.seed, start_step=5, threads=1, places=places
    )
    val = loader.eval_batches(dataset, "val", batch_size=size, threads=1, places=places)
    see = jax.jit(lambda batch: batch, out_shardings=parallel.replicated(mesh))
    found: dict[str, list[Any]] = {}
    for kind, batches in (("train", itertools.islice(train, STEPS)), ("val", val)):
        for batch in batches:
            found.setdefault("read", []).append(len(batch["mask"]))
            for name, value in jax.device_get(see(parallel.to_devices(mesh, batch))).items():
                found.setdefault(f"{kind} {name}", []).append(value)
    return {name: np.stack(values) for name, values in found.items()}


def features_of(config: ExperimentConfig, mesh: Mesh, folder: Path) -> dict[str, np.ndarray]:
    """Features of the validation images."""
    data = config.data
    dataset = open_or_draw(Path(data.data_dir), data.name, data.prepared_size)
    network = pretrained(config, dataset.info, mesh)
    found = features.extract(
        network, dataset, folder, mesh=mesh, splits=["val"], say=lambda _: None
    )
    return {"features": np.asarray(found["val"].features)}


def main(job: Job, index: int) -> None:
    launch.start(f"127.0.0.1:{job.port}", job.processes, index)

    def make_mesh(shape: Any, names: Any, *, devices: Any, axis_types: Any) -> Mesh:
        ordered = np.array(devices)[np.array(job.order)].reshape(shape)
        return Mesh(ordered, names, axis_types=axis_types)

    with mock.patch.object(jax, "make_mesh", make_mesh):
        config, folder = config_of(Path(job.config), job.batch_size, job.model), Path(job.folder)
        mesh = parallel.make_mesh(job.model)
        found = whole_batches(config, mesh) | features_of(config, mesh, folder / "features")
        found["held"] = np.array([device.process_index for device in mesh.devices.flat])
        np.savez(folder / f"{index}.npz", **found)  # type: ignore[arg-type]
        for name in job.runs:
            carry_out(name, config, folder / name)


if __name__ == "__main__":
    main(Job(**json.loads(Path(sys.argv[1]).read_text())), int(sys.argv[2]))
