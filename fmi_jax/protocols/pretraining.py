"""What pre-trainings without labels share: views of an image, a teacher that follows, their course.

A module that is pre-trained has its network as `backbone` and what stands on it as `head`; what
follows them by moving averages has the same names under `teacher`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax import augment
from fmi_jax.artifacts.charts import Curves
from fmi_jax.artifacts.history import FILE_NAME, read_history
from fmi_jax.artifacts.result import Finding
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig, Backbone, Execution, create_abstract
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn.linear import linear
from fmi_jax.nn.norm import BatchNorm
from fmi_jax.protocols import monitor
from fmi_jax.protocols.adapt import partial
from fmi_jax.protocols.judging import Run
from fmi_jax.protocols.spec import Fit, FitSpec, Images, JudgeSpec, Pixels, seeds_alone
from fmi_jax.settings import AugmentConfig, BaseConfig, section
from fmi_jax.tasks.self_supervision import spread
from fmi_jax.training.loop import Plan
from fmi_jax.training.step import Arrays, Augment

TEACHER, ANCHOR = "teacher.", "anchor."
GLOBAL = 2  # number of global views
FIGURE = "pretraining.png"

_PANELS = {"Loss": "loss", "Cosine with the target": "cosine", "Spread of targets": "spread"}
_ALIKE = 0.05  # spread of the targets' unit vectors below which they are the same
_PUBLISHED_SIZE = 224  # side in pixels for which the blur was published
_NORM = {"eps": 1e-5, "momentum": 0.1}

# The monitor sees images as an evaluation does, and judges neighbours by the metric.
_IGNORES = (
    *(
        f"augment.{field.name}"
        for field in dataclasses.fields(AugmentConfig)
        if field.name != "center_crop"
    ),
    *("group_pooling", "operating", "train.bootstrap_samples"),
)


class Teacher(nnx.Module):
    """A backbone with what stands on it, as they follow the student's."""

    def __init__(self, backbone: Backbone, head: nnx.Module):
        self.backbone = backbone
        self.head = head


class BatchNormMLP(nnx.Module):
    """Linear layers with batch norm and ReLU between them.

    Args:
      widths: widths from the input to the output.
      last_norm: batch norm after the last layer, too; it has no ReLU.
      dtype: compute type of matrix products.
      rngs: stream `params`.
    """

    def __init__(
        self, widths: Sequence[int], *, last_norm: bool = False, dtype: Any, rngs: nnx.Rngs
    ):
        last = len(widths) - 2
        normed = [i < last or last_norm for i in range(last + 1)]
        self.layers = nnx.List(
            linear(*widths[i : i + 2], use_bias=not normed[i], dtype=dtype, rngs=rngs)
            for i in range(last + 1)
        )
        self.norms = nnx.List(
            BatchNorm(width, **_NORM)
            for width, has_one in zip(widths[1:], normed, strict=True)
            if has_one
        )

    def __call__(self, x: Float[Array, "n i"], *, training: bool) -> Float[Array, "n o"]:
        """Values of the last layer."""
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.norms):
                x = self.norms[i](x, training=training)
            if i < last:
                x = jax.nn.relu(x)
        return x


class Predictor(nnx.Module):
    """Projection of a feature, and prediction of another projection from it (BYOL, SimSiam)."""

    def __init__(self, projection: BatchNormMLP, prediction: BatchNormMLP):
        self.projection = projection
        self.prediction = prediction


class Projector(nnx.Module):
    """Projection of a feature: what the teacher has of a `Predictor`."""

    def __init__(self, projection: BatchNormMLP):
        self.projection = projection


def view(
    base: augment.View, scale: tuple[float, float], size: int, of: int, count: int = 1
) -> augment.View:
    """Change a published view to areas and sizes of an experiment.

    Args:
      base: published view.
      scale: range of its area, relative to the prepared image.
      size: side of its image in pixels.
      of: side of global views in pixels, with which the deviation of the blur scales.
      count: number of such views.
    """
    low, high = (deviation * of / _PUBLISHED_SIZE for deviation in base.config.blur_sigma)
    changed = dataclasses.replace(base.config, crop_scale=scale, blur_sigma=(low, high))
    return augment.View(changed, size, count)


def cropping(wanted: Sequence[augment.View], pixels: Pixels) -> Augment:
    """Make the views of a batch: global ones first, then those of each other size together."""

    def crop(keys: jax.Array, batch: Arrays) -> Arrays:
        crops = augment.views(keys, batch["inputs"], wanted, pixels.mean, pixels.std, pixels.dtype)
        first, rest = crops[:GLOBAL], crops[GLOBAL:]
        return batch | {"inputs": (jnp.stack(first, 1), *augment.stack_by_size(rest))}

    return crop


def learns(config: BaseConfig, arch: ArchConfig) -> Callable[[str], bool]:
    """Select the student's parameters, of its backbone without the first `frozen_blocks`."""
    if not config.backbone.frozen_blocks:
        return lambda name: name.startswith(("backbone.", "head."))
    in_backbone = partial.learns(config, arch)
    return lambda name: name.startswith("head.") or in_backbone(name)


def begins(name: str) -> str | None:
    """Name of the student's array that an array of the teacher, or anchor, begins as a copy of."""
    if name.startswith(ANCHOR):
        return "backbone." + name.removeprefix(ANCHOR)
    return name.removeprefix(TEACHER) if name.startswith(TEACHER) else None


def follows(name: str) -> bool:
    """Test whether an array is the teacher's, or of the weights that it is held to."""
    return name.startswith((TEACHER, ANCHOR))


def momentum(start: float, progress: Any) -> Any:
    """Momentum of a teacher at a share of all steps: from `start` to 1 along a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + jnp.cos(math.pi * progress))


def averaged(params: Arrays, followers: Arrays, keep: Any, anchor: float = 0.0) -> Arrays:
    """Move a teacher towards the student.

    The forward pass has moved its running statistics, and what does not learn stays as it began.

    Args:
      params, followers: student, and teacher with the backbone that it is held to, if any.
      keep: momentum of the teacher.
      anchor: share of the first weights in what the teacher's backbone averages. The teacher is
        then at every step `anchor` times the first weights, and the rest an average of students.
    """
    moved = {}
    for name, old in followers.items():
        source = begins(name)
        if not name.startswith(TEACHER) or source not in params:
            continue
        new = params[source]
        if anchor and source.startswith("backbone."):
            new = (1 - anchor) * new + anchor * followers[ANCHOR + source.removeprefix("backbone.")]
        moved[name] = keep * old + (1 - keep) * new
    return moved


def judge_of(
    name: str,
    options: type[monitor.MonitorConfig],
    panels: Mapping[str, str],
    images: Callable[[BaseConfig, Mapping[str, int]], Images],
    warn: Callable[[BaseConfig, Mapping[str, float]], Iterator[str]],
    also: Callable[[BaseConfig], Mapping[str, tuple[str, float]]] = lambda config: {},
) -> JudgeSpec:
    """Make the judge that shows the course of a pre-training, and says if it has collapsed.

    Args:
      name: protocol.
      options: class of its section of the config.
      panels: scalar of the training by its title.
      images: number of images that it takes.
      warn: notes on the last values of the scalars.
      also: title and value of numbers of the config beside them, by name.
    """

    def judge(run: Run) -> Finding:
        history = read_history(run.workdir / FILE_NAME)
        titles = {f"train/{scalar}": title for title, scalar in panels.items()} | {
            f"monitor/{scalar}": title for scalar, title in monitor.TITLES.items()
        }
        shown = {scalar: history[scalar] for scalar in titles if scalar in history}
        first, last = (
            {scalar.split("/")[1]: float(values[at]) for scalar, (_, values) in shown.items()}
            for at in (0, -1)
        )
        beside = also(run.config)
        lines = [
            f"{titles[scalar]:<32}{float(values[0]):>9.3f} to {values[-1]:.3f}"
            for scalar, (_, values) in shown.items()
        ]
        lines += [f"{title:<32}{value:>9.3f}" for title, value in beside.values()]
        best = {}
        if run.selection is not None and (step := run.selection.best_step) and "knn" in last:
            value = run.selection.tracks[0].best_value
            best = {"best_by_neighbours": {"step": step, run.metric: value}}
        return Finding(
            judge=name,
            title=f"Self-supervised pre-training on {run.dataset.info.name}",
            values={n: {"first": first[n], "last": last[n]} for n in first}
            | {n: value for n, (_, value) in beside.items()}
            | best,
            text="\n".join(lines),
            figures={FIGURE: "Course of the pre-training"},
            charts={FIGURE: Curves(panels={titles[n]: values for n, values in shown.items()})},
            notes=(
                *warn(run.config, last),
                *monitor.notes(run.selection, first, last),
                _seen(run.dataset.info),
            ),
        )

    def all_images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
        trained, judged = images(config, counts)
        watched = monitor.images(section(config, options), config, counts)
        return Images(trained, judged + watched)

    return JudgeSpec(
        name="pretraining",
        summary="course of the pre-training",
        labels=tuple(Label),
        judge=judge,
        images=all_images,
        shows="analysis",
    )


def _seen(info: DatasetInfo) -> str:
    """Say which images a pre-training saw, and what judges it."""
    label = (
        f"{info.name} has no labels" if info.label is Label.NONE else "No label was learned from"
    )
    held_out = sum(count for split, count in info.counts.items() if split != "train")
    images = f"only the {info.counts['train']:,} training images of {info.name}"
    if not held_out:
        images = f"all {info.counts['train']:,} images of {info.name}"
    return f"{label}, and {images} were seen. kNN and probes judge the backbone (backbone.run)."


def fit_spec(
    name: str,
    title: str,
    *,
    fit: Callable[[BaseConfig, ArchConfig], Fit],
    options: type,
    judge: JudgeSpec,
    small: Mapping[str, Any],
    check: Callable[[BaseConfig, DatasetInfo], None] = lambda config, info: None,
) -> FitSpec:
    """Describe a protocol that pre-trains: data without labels, nothing chosen on validation.

    Args:
      name: protocol, and its section of the config.
      title: published name of the method.
      fit: describes the training of a config.
      options: class of the protocol's section.
      judge: judge of what was trained.
      small: fields to set in an experiment on tiny backbones and few images.
      check: refuses configs that do not fit the data, beside what every pre-training refuses.
    """

    def check_all(config: BaseConfig, info: DatasetInfo) -> None:
        _check(config)
        check(config, info)

    return FitSpec(
        name=name,
        summary=f"self-supervised pre-training without labels ({title}); hands its backbone on",
        labels=tuple(Label),
        fit=fit,
        options=options,
        reads=(name, "backbone.frozen_blocks", "optim.layer_decay"),
        ignores=_IGNORES,
        check=check_all,
        judge=judge,
        variants=seeds_alone,
        small=small,
    )


def _check(config: BaseConfig) -> None:
    """Refuse a schedule that needs validation, and frozen batch norms."""
    if config.optim.schedule == "plateau":
        raise UsageError(
            f"optim.schedule='plateau': protocol {config.protocol!r} measures nothing on"
            " validation; expected 'cosine' or 'constant'."
        )
    name, frozen = config.backbone.name, config.backbone.frozen_blocks
    spec = BACKBONES[name]
    if frozen and nnx.state(create_abstract(spec.family, spec.arch, Execution()), nnx.BatchStat):
        # They would normalise with the views' statistics, and be handed on with those of before.
        raise UsageError(
            f"backbone.frozen_blocks={frozen}: {name} has batch norms, whose statistics protocol"
            f" {config.protocol!r} does not freeze; expected 0, and optim.layer_decay below 1 to"
            " keep the first blocks close to what they were."
        )


def seen_images(config: BaseConfig, counts: Mapping[str, int]) -> int:
    """Count the images that all steps take, each as often as it is drawn."""
    return Plan.of(config, counts["train"]).total_steps * config.train.batch_size


def two_views(scale: tuple[float, float], side: int) -> tuple[augment.View, ...]:
    """Describe the two published global views, in the size and areas of an experiment."""
    return tuple(view(one, scale, side, side) for one in augment.dino_views()[:2])


def view_scalars(seen: Arrays) -> Arrays:
    """Make the scalars of a step that predicts views."""
    return {"cosine": seen["cosine"], "spread": spread(seen["feature"])}


def alike(scalars: Mapping[str, float]) -> str:
    """Say that all images have become one; empty where they have not."""
    if scalars["spread"] >= _ALIKE:
        return ""
    return f"all images have nearly the same target (spread {scalars['spread']:.3f} of at most 1)"


def warn_of_spread(config: BaseConfig, last: Mapping[str, float]) -> Iterator[str]:
    """Say that all images have become one."""
    del config
    if words := alike(last):
        yield f"The pre-training has collapsed: {words}."


def watch_views(options: monitor.MonitorConfig) -> Callable[[Run], monitor.FeatureMonitor | None]:
    """Make the choice of images to watch in a pre-training that predicts views."""
    return functools.partial(monitor.watch, options, alike)


def view_judge(name: str, options: type[monitor.MonitorConfig], *, teacher: bool) -> JudgeSpec:
    """Make the judge of a pre-training that predicts views.

    Args:
      name: protocol.
      teacher: True if another network than the student sees the views, too.
    """

    def images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
        seen = GLOBAL * seen_images(config, counts)
        return Images(seen, seen * teacher)

    return judge_of(name, options, _PANELS, images, warn_of_spread)
