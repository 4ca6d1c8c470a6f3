"""From a config to a model: the classifier as a partition, and its first arrays.

The order is a contract: the model exists in the abstract, pretrained arrays are loaded, whatever
is left is initialised, and only then is it divided and handed to an optimizer.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fmi_jax import augment, parallel
from fmi_jax.checkpoints import load_backbone
from fmi_jax.config import BackboneConfig, ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import ArchConfig, BackboneSpec, Execution
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import ProtocolSpec
from fmi_jax.training.partition import Partition, named_values, partition
from fmi_jax.training.step import Arrays, Augment, Placement, make_eval_step

_PREFIX = "backbone."
OPTIONS = ("readout", "rel_pos_resize")  # of BackboneConfig: fields of the arch by the same name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembly:
    """A classifier before it has arrays.

    Attributes:
      spec: the backbone.
      arch: its arch in this experiment (image size, input channels, truncated).
      protocol: how it is judged.
      execution: how it is run.
      partition: the classifier's structure, and which arrays learn.
      create: makes the classifier with random arrays.
      weights: converted checkpoint to load, or None.
    """

    spec: BackboneSpec
    arch: ArchConfig
    protocol: ProtocolSpec
    execution: Execution
    partition: Partition
    create: Callable[[], nnx.Module]
    weights: Path | None


def assemble(config: ExperimentConfig, channels: int, num_classes: int) -> Assembly:
    """The classifier that `config` describes, for images of `channels` and `num_classes`.

    Raises:
      UsageError: an unknown name, weights that are not there, a block that does not exist, or
        an image size that the backbone cannot take.
    """
    protocol = PROTOCOLS[config.protocol]
    spec = BACKBONES[config.backbone.name]
    arch = dataclasses.replace(spec.arch, in_channels=channels)
    arch = arch.sized(config.image_size, config.image_size)
    arch = _with_options(arch, config.backbone)
    # Truncated also after the last block: what no feature depends on (the neck of SAM) has no
    # gradient, and would only decay.
    last = config.backbone.last_block
    arch = arch.truncated(last if last >= 0 else arch.num_blocks - 1)
    execution = Execution(
        dtype=_dtype(config.backbone.dtype),
        remat=config.backbone.remat,
        drop_path=config.backbone.drop_path,
    )

    def create() -> nnx.Module:
        rngs = nnx.Rngs(config.train.seed)
        backbone = spec.family(arch, execution, rngs=rngs)  # type: ignore[call-arg]
        return protocol.classifier(backbone, num_classes, rngs)

    abstract: Any = nnx.eval_shape(create)
    abstract.backbone.grid(config.image_size, config.image_size)  # refuses a size it cannot take
    return Assembly(
        spec=spec,
        arch=arch,
        protocol=protocol,
        execution=execution,
        partition=partition(abstract, protocol.trainable),
        create=create,
        weights=find_weights(config.backbone, spec),
    )


def placement_of(assembly: Assembly, config: ExperimentConfig, mesh: Mesh) -> Placement:
    """Where each array of the classifier lives."""
    shapes = assembly.partition.shapes(tuple(assembly.partition.variables))
    return parallel.parameter_shardings(mesh, shapes, config.train.sharding)


def augmentation(assembly: Assembly, config: ExperimentConfig, info: DatasetInfo) -> Augment:
    """What happens to training images on the device."""
    return functools.partial(
        augment.augment,
        config=config.augment,
        image_size=config.image_size,
        mean=info.mean,
        std=info.std,
        dtype=assembly.execution.dtype,
    )


def evaluation_step(
    assembly: Assembly,
    config: ExperimentConfig,
    info: DatasetInfo,
    mesh: Mesh,
    placement: Placement,
) -> Callable[[Arrays, Arrays], Arrays]:
    """The jitted step from prepared uint8 images to logits; see `make_eval_step`."""
    preprocess = functools.partial(
        augment.prepare_eval,
        config=config.augment,
        image_size=config.image_size,
        mean=info.mean,
        std=info.std,
        dtype=assembly.execution.dtype,
    )
    return make_eval_step(assembly.partition, preprocess, mesh=mesh, placement=placement)


def _with_options(arch: ArchConfig, config: BackboneConfig) -> ArchConfig:
    """`arch` with the choices that `config` makes; `UsageError` for one that it does not have."""
    chosen = {name: getattr(config, name) for name in OPTIONS if getattr(config, name)}
    for name in chosen:
        if not hasattr(arch, name):
            raise UsageError(
                f"backbone.{name}={chosen[name]!r}: {config.name} has no such choice; leave it"
                " empty."
            )
    return dataclasses.replace(arch, **chosen)


def _dtype(name: str) -> Any:
    if name == "auto":
        return jnp.bfloat16 if jax.default_backend() in ("gpu", "tpu") else jnp.float32
    return jnp.dtype(name)


def find_weights(config: BackboneConfig, spec: BackboneSpec) -> Path | None:
    """The converted checkpoint that `config` names; `UsageError` if it is not on disk."""
    if not config.weights:
        return None
    if config.weights.endswith(".safetensors"):
        path = Path(config.weights)
        if not path.is_file():
            raise UsageError(f"backbone.weights: there is no file {path}.")
        return path
    folder = Path(config.weights_dir)
    path = folder / f"{spec.name}.{config.weights}.safetensors"
    if path.is_file():
        return path
    known = [source.tag for source in spec.sources]
    there = sorted(p.name for p in folder.glob(f"{spec.name}.*.safetensors"))
    command = f"python -m weights_convert {spec.name} --download --out {folder}"
    raise UsageError(
        f"backbone.weights={config.weights!r}: there is no {path}."
        f" Converted for {spec.name}: {', '.join(there) or 'nothing'};"
        f" published tags: {', '.join(known) or 'none'}."
        + (f" To fetch and convert: {command}" if known else "")
    )


def initial_arrays(
    assembly: Assembly, config: ExperimentConfig, placement: Placement
) -> dict[str, jax.Array]:
    """Every array of the classifier by name, where `placement` says.

    The backbone's come from the weights file, if there is one; the rest is drawn from the seed,
    and only the rest takes time or memory.
    """
    loaded: dict[str, np.ndarray] = {}
    if assembly.weights is not None:
        native = load_backbone(
            assembly.weights, assembly.spec, assembly.arch, stem=config.backbone.stem
        )
        loaded = {_PREFIX + name: value for name, value in native.items()}
        for name, value in loaded.items():
            expected = assembly.partition.shapes((name,))[name]
            if value.shape != expected.shape:
                raise UserError(
                    f"{assembly.weights}: {name} has shape {value.shape}, expected"
                    f" {expected.shape}."
                )
    missing = [name for name in assembly.partition.variables if name not in loaded]

    def draw() -> dict[str, Any]:
        values = named_values(assembly.create())
        return {name: values[name] for name in missing}

    drawn = jax.jit(draw, out_shardings={name: placement[name] for name in missing})()
    placed = {name: parallel.place(value, placement[name]) for name, value in loaded.items()}
    return drawn | placed
