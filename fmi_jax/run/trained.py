"""The best network of a finished run."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from fmi_jax import atomic, parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.artifacts.record import RunRecord
from fmi_jax.artifacts.result import Result
from fmi_jax.artifacts.weights import load_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UserError
from fmi_jax.models.base import ArchConfig, parameters
from fmi_jax.protocol_config import ProbeGridConfig
from fmi_jax.protocols.heads.lora import merge_adapters
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import Grid, Head
from fmi_jax.run import runtime
from fmi_jax.run.assembly import OPTIONS, Assembly, assemble, initial_arrays, placement_of
from fmi_jax.training.side_by_side import at_their_best
from fmi_jax.training.step import Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A classifier as it was best on validation.

    Attributes:
      config, info: what the run was of.
      assembly: the classifier.
      mesh, placement: where its arrays are.
      arrays: every array by native name, the frozen ones too.
    """

    config: ExperimentConfig
    info: DatasetInfo
    assembly: Assembly
    mesh: Mesh
    placement: Placement
    arrays: dict[str, jax.Array]


def read_trained(workdir: Path) -> Trained:
    """Read the best checkpoint of the run in `workdir`.

    Raises:
      UserError: the run is not finished or damaged, or its pretrained weights have changed.
    """
    runtime.configure()
    record = RunRecord.read(workdir)
    if record is not None and not PROTOCOLS[record.config.protocol].trains:
        raise UserError(
            f"{workdir} holds a run of protocol {record.config.protocol!r}, which trains no"
            " network: expected the folder of one that does, such as 'linear_probe' or 'finetune'."
        )
    result = Result.read(workdir)
    if record is None:
        raise UserError(f"{workdir} holds no run.json: expected the folder of a finished run.")
    config, info = record.config, DatasetInfo.from_json(record.dataset)

    mesh = parallel.make_mesh()
    assembly = assemble(config, info.channels, len(info.classes))
    if assembly.weights is not None:
        _check_weights(workdir, assembly.weights, record.weights_sha256)
    placement = placement_of(assembly, config, mesh)
    shapes = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placement[name])
        for name, shape in assembly.partition.shapes(tuple(assembly.partition.variables)).items()
    }
    grid = assembly.protocol.grid
    learned = RunCheckpoints(workdir / "checkpoints").restore_model(
        result.best.step if grid is None else result.steps,  # the last holds every head's best
        {
            "params": {name: shapes[name] for name in assembly.partition.params},
            "stats": {name: shapes[name] for name in assembly.partition.followers},
        },
    )
    arrays = learned["params"] | learned["stats"]
    if assembly.partition.frozen:
        arrays |= initial_arrays(assembly, config, placement, assembly.partition.frozen)
    run = Trained(
        config=config,
        info=info,
        assembly=assembly,
        mesh=mesh,
        placement=placement,
        arrays=arrays,
    )
    return run if grid is None else _chosen_head(run, result, grid)


def _chosen_head(run: Trained, result: Result, grid: Grid) -> Trained:
    """The linear probe that a grid of heads reports, as if it had been trained alone."""
    head = grid.heads(run.config).index(Head(**result.details["chosen"]))
    config = dataclasses.replace(run.config, protocol=grid.alone, probe_grid=ProbeGridConfig())
    assembly = assemble(config, run.info.channels, len(run.info.classes))
    placement = placement_of(assembly, config, run.mesh)
    arrays = {name: run.arrays[name] for name in assembly.partition.frozen}
    best = at_their_best(run.arrays)
    for name in assembly.partition.params:
        arrays[name] = jax.device_put(best[name][head], placement[name])
    return dataclasses.replace(
        run, config=config, assembly=assembly, placement=placement, arrays=arrays
    )


def whole_backbone(run: Trained) -> tuple[ArchConfig, dict[str, np.ndarray]]:
    """The arch and the parameters by native name of the backbone of a run, as it is published.

    A run leaves out what stands after the last block and no feature depends on (the neck of
    SAM); here it is, as it was in the weights that the run started from. A run that truncated
    the network, or started from random weights, has no such thing. Adapters (protocol `lora`) are
    merged into the layers they adapt.
    """
    assembly, config = run.assembly, run.config
    arch, spec = assembly.arch, assembly.spec
    backbone = assembly.partition.merge(run.arrays).backbone
    merge_adapters(backbone)
    params = {name: np.asarray(value) for name, value in parameters(backbone).items()}
    whole = dataclasses.replace(spec.arch, in_channels=arch.in_channels)
    whole = whole.sized(config.image_size, config.image_size)
    chosen = {name: getattr(arch, name) for name in OPTIONS if hasattr(arch, name)}
    whole = dataclasses.replace(whole, **chosen)
    if whole == arch:
        return arch, params
    if assembly.weights is None or whole.truncated(whole.num_blocks - 1) != arch:
        return arch, params
    pretrained = load_backbone(assembly.weights, spec, whole, stem=config.backbone.stem)
    return whole, pretrained | params


def _check_weights(workdir: Path, weights: Path, expected: str | None) -> None:
    """Refuse other pretrained weights than those the run started from."""
    found = atomic.sha256(weights)
    if found != expected:
        raise UserError(
            f"{weights} is not the file that the run in {workdir} started from: its sha256 is"
            f" {found}, expected {expected}. Put that file back: what a run freezes it does not"
            " save."
        )
