"""Networks with their arrays on the devices: as a config begins, or as a finished run ended.

Where the arrays of a backbone come from, the first that is set: `backbone.run`,
`backbone.weights`, `train.seed`. `origin` finds and checks it. All networks of a run live on the
run's mesh.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.artifacts.weights import fit_backbone, load_backbone
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UserError
from fmi_jax.models.base import ArchConfig, parameters
from fmi_jax.nn.shards import filed_shape
from fmi_jax.protocols.judging import Network
from fmi_jax.protocols.registry import alone, protocol_of
from fmi_jax.run import runtime
from fmi_jax.run.assembly import (
    OPTIONS,
    Assembly,
    assemble,
    evaluation_preprocess,
    placement_of,
)
from fmi_jax.run.origin import FinishedRun, Origin, chosen_head, find_origin, finished_run
from fmi_jax.settings import BaseConfig
from fmi_jax.training.partition import named_values
from fmi_jax.training.side_by_side import at_their_best
from fmi_jax.training.step import Placement

_BACKBONE, _TRANSFORMER = "backbone.", "transformer."


def pretrained(config: BaseConfig, info: DatasetInfo, mesh: Mesh) -> Network:
    """Build the network that `config` describes before any training; its head is drawn.

    Raises:
      UserError: see `assemble`, `find_origin` and `initial_arrays`.
    """
    assembly = assemble(config, info.channels, len(info.classes))
    return begun(assembly, config, find_origin(assembly, config, info), mesh)


def begun(assembly: Assembly, config: BaseConfig, origin: Origin, mesh: Mesh) -> Network:
    """Build the network of `pretrained` from its assembly and its origin."""
    placement = placement_of(assembly, config, mesh)
    weights = config.backbone.weights or "random weights"
    if config.backbone.run:
        weights = f"from {Path(config.backbone.run).name}"
    return Network(
        name=f"{assembly.spec.name}, {Path(weights).stem if assembly.weights else weights}",
        config=config,
        spec=assembly.spec,
        arch=assembly.arch,
        dtype=assembly.execution.dtype,
        partition=assembly.partition,
        arrays=initial_arrays(assembly, config, placement),
        placement=placement,
        preprocess=evaluation_preprocess(assembly, config, origin.info),
        info=origin.info,
        identity=origin.identity,
    )


def trained(
    assembly: Assembly,
    config: BaseConfig,
    origin: Origin,
    mesh: Mesh,
    arrays: Mapping[str, jax.Array],
    sha256: str,
    words: str,
) -> Network:
    """Build the network of a run from what the run has trained.

    Args:
      assembly, config, origin, mesh: the run's.
      arrays: every array of the model, or of the part that the run hands on.
      sha256: checksum of the trained network.
      words: the protocol in words.
    """
    learned = any(name.startswith(_BACKBONE) for name in assembly.partition.params)
    run = Trained(
        config=config,
        info=origin.info,
        pixels=origin.info,
        identity={"run": sha256} if learned else origin.identity,
        assembly=assembly,
        mesh=mesh,
        placement=placement_of(assembly, config, mesh),
        arrays=dict(arrays),
    )
    return _network(handed_on(run), words)


def _network(run: "Trained", words: str) -> Network:
    return Network(
        name=f"{run.assembly.spec.name}, {words}",
        config=run.config,
        spec=run.assembly.spec,
        arch=run.assembly.arch,
        dtype=run.assembly.execution.dtype,
        partition=run.assembly.partition,
        arrays=run.arrays,
        placement=run.placement,
        preprocess=evaluation_preprocess(run.assembly, run.config, run.pixels),
        info=run.pixels,
        identity=run.identity,
    )


def finished(workdir: Path, mesh: Mesh) -> Network:
    """Read the best network of the finished run in `workdir`.

    Raises:
      UserError: see `read_trained`.
    """
    run = read_trained(workdir, mesh)
    return _network(run, protocol_of(run.config).summary)


def started(workdir: Path, info: DatasetInfo, mesh: Mesh) -> Network:
    """Build the network that the finished run in `workdir` started from; its head is drawn.

    Raises:
      UserError: see `finished_run` and `pretrained`, or the run that it started from has changed.
    """
    run = finished_run(workdir, mesh.shape["model"])
    network = pretrained(run.config, info, mesh)
    if run.config.backbone.run:
        run.record.check_parent(network.identity["run"], workdir)
    return network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A classifier as it was best on validation.

    Attributes:
      config: experiment that trained it.
      info: data set that it was trained on.
      pixels: data set whose mean and standard deviation it was trained with.
      identity: origin of the backbone's arrays; see `Network.identity`.
      assembly: classifier without its arrays.
      mesh: devices.
      placement: sharding of every array, by native name.
      arrays: every array by native name, the frozen ones too.
    """

    config: BaseConfig
    info: DatasetInfo
    pixels: DatasetInfo
    identity: Mapping[str, Any]
    assembly: Assembly
    mesh: Mesh
    placement: Placement
    arrays: dict[str, jax.Array]


def read_trained(workdir: Path, mesh: Mesh | None = None, step: str = "kept") -> Trained:
    """Read the network that the run in `workdir` has kept.

    Args:
      workdir: run's folder.
      mesh: devices to put it on; None: all of them, along "data".
      step: step whose network is meant: "kept", or "best" (`backbone.run_step`).

    Raises:
      UserError: the run is not finished or damaged, or what it started from has changed.
    """
    runtime.configure()
    mesh = parallel.make_mesh() if mesh is None else mesh
    found = finished_run(workdir, mesh.shape["model"], step)
    config, assembly = found.config, found.assembly
    placement = placement_of(assembly, config, mesh)
    shapes = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placement[name])
        for name, shape in assembly.partition.shapes(tuple(assembly.partition.variables)).items()
    }
    checkpoints = RunCheckpoints(found.checkpoints)
    learned = checkpoints.restore_model(
        found.step,
        {
            "params": {name: shapes[name] for name in assembly.partition.params},
            "stats": {name: shapes[name] for name in assembly.partition.followers},
        },
    )
    checkpoints.close()
    arrays = learned["params"] | learned["stats"]
    if assembly.partition.frozen:
        arrays |= initial_arrays(assembly, config, placement, assembly.partition.frozen)
    run = Trained(
        config=config,
        info=found.info,
        pixels=found.pixels,
        identity={"run": found.sha256},
        assembly=assembly,
        mesh=mesh,
        placement=placement,
        arrays=arrays,
    )
    return _chosen_head(run, found) if assembly.fit.heads else handed_on(run)


def _chosen_head(run: Trained, found: FinishedRun) -> Trained:
    """Take out the linear probe that a grid of heads reports, as if it were trained alone."""
    head = chosen_head(run.assembly.fit.heads, found.result.finding)
    config = alone(run.config)
    assembly = assemble(config, run.info.channels, len(run.info.classes))
    placement = placement_of(assembly, config, run.mesh)
    best = at_their_best(run.arrays)
    return dataclasses.replace(
        run,
        config=config,
        identity={**run.identity, "head": head},
        assembly=assembly,
        placement=placement,
        arrays={name: run.arrays[name] for name in assembly.partition.frozen}
        | {
            name: jax.device_put(best[name][head], placement[name])
            for name in assembly.partition.params
        },
    )


def handed_on(run: Trained) -> Trained:
    """Take out what a run hands on: the network, or of a pre-training the bare backbone."""
    fit = run.assembly.fit
    path = fit.hands_on + "."
    if fit.task is None and path == _BACKBONE:
        return run
    assembly = assemble(run.config, run.info.channels, len(run.info.classes), bare=True)
    return dataclasses.replace(
        run,
        assembly=assembly,
        placement=placement_of(assembly, run.config, run.mesh),
        arrays={
            _BACKBONE + name.removeprefix(path): value
            for name, value in run.arrays.items()
            if name.startswith(path)
        },
    )


def trained_backbone(run: Trained) -> dict[str, np.ndarray]:
    """Read the backbone of a run as files hold it: by native name, adapters (`lora`) merged."""
    backbone = run.assembly.partition.merge(run.arrays).backbone
    if run.assembly.fit.merge is not None:
        run.assembly.fit.merge(backbone)
    return {name: _on_host(value) for name, value in parameters(backbone).items()}


def whole_backbone(run: Trained) -> tuple[ArchConfig, dict[str, np.ndarray]]:
    """Read arch and parameters, by native name, of a run's backbone as it is published.

    A run leaves out what stands after the last block and no feature depends on (the neck of
    SAM); here it is, as it was in the weights that the run started from. A run that truncated
    the network, or started from random weights or from another run, has no such thing.
    """
    assembly, config = run.assembly, run.config
    arch, spec = assembly.arch, assembly.spec
    params = trained_backbone(run)
    chosen = {name: getattr(arch, name) for name in OPTIONS if hasattr(arch, name)}
    whole = dataclasses.replace(spec.arch, in_channels=arch.in_channels, **chosen)
    whole = whole.sized(config.image_size, config.image_size)
    without_end = whole != arch and whole.truncated(whole.num_blocks - 1) == arch
    if not without_end or assembly.weights is None:
        return arch, params
    return whole, load_backbone(assembly.weights, spec, whole, stem=config.backbone.stem) | params


def initial_arrays(
    assembly: Assembly,
    config: BaseConfig,
    placement: Placement,
    names: Iterable[str] | None = None,
) -> dict[str, jax.Array]:
    """Load or draw arrays of the classifier, those named or all, and place them on the devices.

    The backbone's arrays come from `backbone.run` or a weights file, the transformer's from a file
    of its own, where there are any; only the rest is drawn from the seed and takes time or memory.

    Raises:
      UserError: the weights or the run are damaged, or do not fit.
    """
    wanted = tuple(assembly.partition.variables if names is None else names)
    copies = {name: source for name in wanted if (source := assembly.fit.begins(name)) is not None}
    loaded: dict[str, np.ndarray] = {}
    if any(name.startswith(_BACKBONE) for name in wanted):
        native = _first_backbone(assembly, config, next(iter(placement.values())).mesh)
        loaded |= {_BACKBONE + name: value for name, value in native.items()}
    if assembly.transformer_weights is not None and any(n.startswith(_TRANSFORMER) for n in wanted):
        assert assembly.transformer is not None
        spec = assembly.transformer
        native = load_backbone(assembly.transformer_weights, spec, spec.arch)
        loaded |= {
            _TRANSFORMER + name: value
            for name, value in native.items()
            if not name.startswith("patch_embed.")  # tokens take the place of patches
        }
    shapes = assembly.partition.shapes(tuple(assembly.partition.variables))
    for name, value in loaded.items():
        expected = filed_shape(name, shapes[name].shape)
        if value.shape != expected:
            own = config.backbone.run or assembly.weights
            where = own if name.startswith(_BACKBONE) else assembly.transformer_weights
            raise UserError(f"{where}: {name} has shape {value.shape}, expected {expected}.")
        loaded[name] = value.reshape(shapes[name].shape)
    missing = [name for name in wanted if name not in loaded and name not in copies]

    def draw(seed: jax.Array) -> dict[str, Any]:  # an argument: one program for all seeds
        values = named_values(assembly.create(jax.random.key(seed)))
        return {name: values[name].reshape(shapes[name].shape) for name in missing}

    drawn = jax.jit(draw, out_shardings={name: placement[name] for name in missing})
    found = drawn(np.uint32(config.train.seed)) | {
        name: parallel.place(loaded[name], placement[name]) for name in wanted if name in loaded
    }
    # Copies: a training step donates its arrays, and may not be given one twice.
    return found | {name: jax.numpy.copy(found[source]) for name, source in copies.items()}


def _first_backbone(assembly: Assembly, config: BaseConfig, mesh: Any) -> dict[str, np.ndarray]:
    """Read the arrays that the backbone begins with, by native name; none if they are drawn."""
    if config.backbone.run:
        run = read_trained(Path(config.backbone.run), mesh, config.backbone.run_step)
        return fit_backbone(
            config.backbone.run,
            trained_backbone(run),
            assembly.spec,
            run.assembly.arch,
            assembly.arch,
        )
    if assembly.weights is not None:
        return load_backbone(
            assembly.weights, assembly.spec, assembly.arch, stem=config.backbone.stem
        )
    return {}


def _on_host(array: Any) -> np.ndarray:
    """Gather the whole array on this process, wherever its parts are."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
