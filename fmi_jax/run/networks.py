"""A network with its arrays on the devices: from a config, or from a finished run."""

from pathlib import Path

from jax.sharding import Mesh

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import Network
from fmi_jax.run.assembly import (
    Assembly,
    assemble,
    evaluation_preprocess,
    initial_arrays,
    placement_of,
)
from fmi_jax.run.trained import read_trained


def pretrained(config: ExperimentConfig, info: DatasetInfo, mesh: Mesh) -> Network:
    """The network that `config` describes before any training; its head is drawn.

    Raises:
      UserError: as `assemble` and `initial_arrays`.
    """
    assembly = assemble(config, info.channels, len(info.classes))
    return begun(assembly, config, info, mesh)


def begun(assembly: Assembly, config: ExperimentConfig, info: DatasetInfo, mesh: Mesh) -> Network:
    """`pretrained`, of what is assembled already."""
    placement = placement_of(assembly, config, mesh)
    weights = config.backbone.weights or "random weights"
    return Network(
        name=f"{assembly.spec.name}, {Path(weights).stem if assembly.weights else weights}",
        config=config,
        spec=assembly.spec,
        arch=assembly.arch,
        dtype=assembly.execution.dtype,
        partition=assembly.partition,
        arrays=initial_arrays(assembly, config, placement),
        placement=placement,
        preprocess=evaluation_preprocess(assembly, config, info),
    )


def finished(workdir: Path) -> Network:
    """The best network of the finished run in `workdir`.

    Raises:
      UserError: as `read_trained`.
    """
    run = read_trained(workdir)
    return Network(
        name=f"{run.assembly.spec.name}, {PROTOCOLS[run.config.protocol].summary}",
        config=run.config,
        spec=run.assembly.spec,
        arch=run.assembly.arch,
        dtype=run.assembly.execution.dtype,
        partition=run.assembly.partition,
        arrays=run.arrays,
        placement=run.placement,
        preprocess=evaluation_preprocess(run.assembly, run.config, run.info),
    )
