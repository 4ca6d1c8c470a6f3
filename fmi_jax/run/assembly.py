"""Assembles the model of a config in the abstract, as a partition; `network` has arrays.

The order is a contract: the model exists in the abstract, pretrained arrays are loaded, whatever
is left is initialised, and only then is it divided and handed to an optimizer.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fmi_jax import augment, parallel
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError, unknown_name
from fmi_jax.models.base import ArchConfig, Backbone, BackboneSpec, Execution, ParameterKeys
from fmi_jax.models.deit import DeiT, DeiTArch, TokenDeiT
from fmi_jax.models.initialisation import redraw
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn import hardware
from fmi_jax.protocols.registry import check_read, protocol_of
from fmi_jax.protocols.spec import Fit, Parts, Pixels
from fmi_jax.settings import BackboneConfig, BaseConfig
from fmi_jax.tasks.base import Task
from fmi_jax.training import side_by_side
from fmi_jax.training.partition import Partition, nothing, partition
from fmi_jax.training.step import (
    Arrays,
    Augment,
    Measure,
    Outputs,
    Placement,
    Preprocess,
    make_eval_step,
)

OPTIONS = ("readout", "rel_pos_resize")  # of BackboneConfig: fields of the arch by the same name


class Bare(nnx.Module):
    """A backbone with nothing on it, for runs that train no network."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b f"]:
        """Compute pooled features."""
        return self.backbone.features(images, rngs=rngs).pooled


BARE = Fit(module=lambda parts: Bare(parts.backbone), learns=nothing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembly:
    """A model before it has arrays.

    Attributes:
      spec: spec of the backbone.
      arch: arch of the backbone in this experiment (image size, input channels, truncated).
      fit: training of the model; `BARE` for a run that trains none.
      execution: compute type, attention and recomputation of the backbone.
      partition: structure of the model, and which arrays learn.
      create: makes the model with random arrays, given a key.
      weights: converted checkpoint to load, or None.
      transformer: spec of the transformer on the tokens of the backbone, or None.
      transformer_weights: converted checkpoint to load into it, or None.
    """

    spec: BackboneSpec
    arch: ArchConfig
    fit: Fit
    execution: Execution
    partition: Partition
    create: Callable[[jax.Array], nnx.Module]
    weights: Path | None
    transformer: BackboneSpec | None
    transformer_weights: Path | None


def assemble(
    config: BaseConfig, channels: int, num_classes: int, *, bare: bool = False
) -> Assembly:
    """Assemble the model that `config` describes, for images of `channels` and `num_classes`.

    Args:
      config: experiment.
      channels: number of input channels.
      num_classes: width of the logits.
      bare: True for the backbone alone, without what the protocol trains.

    Raises:
      UsageError: an unknown name, weights that are not there, a block that does not exist, an
        image size that the backbone cannot take, or a setting that the protocol does not read.
    """
    check_read(config)
    trained = None if bare else protocol_of(config).fit
    spec = BACKBONES[config.backbone.name]
    arch = dataclasses.replace(spec.arch, in_channels=channels)
    arch = _with_options(arch.sized(config.image_size, config.image_size), config.backbone)
    if config.backbone.stem == "study":
        rebuilt = arch.with_study_stem()
        if rebuilt is None:
            raise UsageError(
                f"backbone.stem='study': the study's code rebuilds no stem of {spec.name} for"
                f" {channels} channel(s); expected 'first', which is what it does to other stems."
            )
        arch = rebuilt
    # Truncated also after the last block: what no feature depends on (the neck of SAM) has no
    # gradient, and would only decay.
    last = config.backbone.last_block
    arch = arch.truncated(last if last >= 0 else arch.num_blocks - 1)
    execution = Execution(
        dtype=hardware.compute_type(config.backbone.dtype),
        attention=config.backbone.attention,
        remat=config.backbone.remat,
        drop_path=config.backbone.drop_path,
    )

    transformer, transformer_weights = None, None
    if trained is not None and trained.transformer is not None:
        asked = trained.transformer(config)
        deits = {name: each for name, each in BACKBONES.items() if each.family is DeiT}
        if asked.backbone not in deits:
            raise unknown_name("transformer for transformer.name", asked.backbone, deits)
        transformer = deits[asked.backbone]
        transformer_weights = find_weights(
            asked.weights, config.backbone.weights_dir, transformer, asked.field
        )

    fit = BARE if trained is None else trained.fit(config, arch)

    def create(key: jax.Array) -> nnx.Module:
        rngs = ParameterKeys(key)

        def backbone(execution: Execution) -> Backbone:
            drawn = spec.family(arch, execution, rngs=rngs)  # type: ignore[call-arg]
            redraw(drawn, config.backbone.initialisation, rngs)
            return drawn

        return fit.module(
            Parts(
                backbone=backbone(execution),
                transformer=_token_deit(transformer, execution, rngs) if transformer else None,
                num_classes=num_classes,
                config=config,
                rngs=rngs,
                new_backbone=lambda: backbone(dataclasses.replace(execution, drop_path=0.0)),
            )
        )

    abstract: Any = nnx.eval_shape(create, jax.random.key(0))
    abstract.backbone.grid(config.image_size, config.image_size)  # refuses a size it cannot take
    structure = partition(
        abstract, fit.learns, fit.follows, divided=config.train.model_parallel > 1
    )
    if trained is not None and not structure.params:
        raise ValueError(f"protocol {config.protocol!r} trains no parameter of this model")
    return Assembly(
        spec=spec,
        arch=arch,
        fit=fit,
        execution=execution,
        partition=structure,
        create=create,
        weights=find_weights(
            config.backbone.weights, config.backbone.weights_dir, spec, "backbone.weights"
        ),
        transformer=transformer,
        transformer_weights=transformer_weights,
    )


def _token_deit(spec: BackboneSpec, execution: Execution, rngs: nnx.Rngs) -> Backbone:
    """Make the transformer without stochastic depth, as in the study; only the backbone has it."""
    assert isinstance(spec.arch, DeiTArch)
    execution = dataclasses.replace(execution, drop_path=0.0)
    return TokenDeiT(spec.arch.on_tokens(), execution, rngs=rngs)


def placement_of(assembly: Assembly, config: BaseConfig, mesh: Mesh) -> Placement:
    """Place each array of the model on the devices."""
    shapes = assembly.partition.shapes(tuple(assembly.partition.variables))
    return parallel.parameter_shardings(mesh, shapes, config.train.sharding)


def augmentation(
    assembly: Assembly, config: BaseConfig, pixels: DatasetInfo, label: Label
) -> Augment:
    """Make the augmentation of a training batch, which runs on the device.

    Args:
      assembly, config: experiment.
      pixels: data set whose mean and standard deviation normalise the images.
      label: form of the labels; maps move with their images, and soft ones may be drawn anew.
    """
    if assembly.fit.augment is not None:
        return assembly.fit.augment(
            Pixels(config, pixels.mean, pixels.std, assembly.execution.dtype)
        )
    return augment.with_redrawn_labels(
        augment.batch_augmentation(label, **_pixels(assembly, config, pixels)),
        *config.loss.soft_labels,
    )


def evaluation_preprocess(assembly: Assembly, config: BaseConfig, info: DatasetInfo) -> Preprocess:
    """Make the function that crops, resizes and normalises images in an evaluation."""
    return functools.partial(augment.prepare_eval, **_pixels(assembly, config, info))


def _pixels(assembly: Assembly, config: BaseConfig, info: DatasetInfo) -> dict[str, Any]:
    """Collect the settings that training and evaluation share."""
    return {
        "config": config.augment,
        "image_size": config.image_size,
        "mean": info.mean,
        "std": info.std,
        "dtype": assembly.execution.dtype,
    }


def evaluation_outputs(
    assembly: Assembly,
    config: BaseConfig,
    pixels: DatasetInfo,
    task: Task,
    *,
    views: str = "",
    flips: bool = False,
) -> Outputs:
    """Make the function that computes outputs over the views of an evaluation; see `ViewsConfig`.

    Args:
      assembly, config: experiment.
      pixels: data set whose mean and standard deviation normalise the images.
      task: meaning of the outputs.
      views: name of the views; empty: that of the config.
      flips: True to average over mirror images as well, each of which is seen in all views.
    """
    name, crop, size = views or config.views.name, config.augment.center_crop, config.image_size
    center = evaluation_preprocess(assembly, config, pixels)
    uncropped = dataclasses.replace(config.augment, center_crop=1.0)
    whole = evaluation_preprocess(assembly, dataclasses.replace(config, augment=uncropped), pixels)

    def outputs(module: Any, batch: Arrays) -> tuple[Any, Arrays]:
        images = batch["inputs"]

        def of_view(view: Array) -> Any:
            return module(whole(view), rngs=None)

        def of_views(images: Array) -> Any:
            if name == "ten_crop":
                return augment.over_ten_crops(of_view, images, crop, task.exclusive)
            if name == "windows":
                return augment.over_windows(of_view, images, size, config.views, task.exclusive)
            return module(center(images), rngs=None)

        if flips:
            return augment.over_flips(of_views, images, task.exclusive), batch
        return of_views(images), batch

    return outputs


def evaluation_step(
    assembly: Assembly,
    config: BaseConfig,
    pixels: DatasetInfo,
    task: Task,
    mesh: Mesh,
    placement: Placement,
    *,
    flips: bool = False,
    measure: Measure | None = None,
) -> Callable[[Arrays, Arrays], Arrays]:
    """Make the jitted step from prepared uint8 images to what is measured; see `make_eval_step`.

    The other arguments are those of `evaluation_outputs`. Without `measure` it is the task's.
    """
    each = task.measure if measure is None else measure
    return make_eval_step(
        assembly.partition,
        evaluation_outputs(assembly, config, pixels, task, flips=flips),
        measure=side_by_side.each(each) if assembly.fit.heads else each,
        mesh=mesh,
        placement=placement,
    )


def _with_options(arch: ArchConfig, config: BackboneConfig) -> ArchConfig:
    """Put the choices of `config` into `arch`; `UsageError` for one that it does not have."""
    chosen = {name: getattr(config, name) for name in OPTIONS if getattr(config, name)}
    for name in chosen:
        if not hasattr(arch, name):
            raise UsageError(
                f"backbone.{name}={chosen[name]!r}: {config.name} has no such choice; leave it"
                " empty."
            )
    return dataclasses.replace(arch, **chosen)


def find_weights(
    weights: str, weights_dir: str | Path, spec: BackboneSpec, field: str = "weights"
) -> Path | None:
    """Find a converted checkpoint of `spec`; None where none is asked for.

    Args:
      weights: tag of the checkpoint, path to a `.safetensors` file, or empty.
      weights_dir: folder of converted checkpoints.
      spec: backbone the file must belong to.
      field: config field, for messages.

    Raises:
      UsageError: it is not on disk.
    """
    if not weights:
        return None
    if weights.endswith(".safetensors"):
        path = Path(weights)
        if not path.is_file():
            raise UsageError(f"{field}: there is no file {path}.")
        return path
    folder = Path(weights_dir)
    path = folder / f"{spec.name}.{weights}.safetensors"
    if path.is_file():
        return path
    known = [source.tag for source in spec.sources]
    there = sorted(p.name for p in folder.glob(f"{spec.name}.*.safetensors"))
    command = f"python -m weights_convert {spec.name} --download --out {folder}"
    raise UsageError(
        f"{field}={weights!r}: there is no {path}."
        f" Converted for {spec.name}: {', '.join(there) or 'nothing'};"
        f" published tags: {', '.join(known) or 'none'}."
        + (f" To fetch and convert: {command}" if known else "")
    )
