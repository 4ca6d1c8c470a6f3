"""DINO (arXiv 2104.14294): self-supervised pre-training of the backbone, without labels.

A student sees two global and several local crops of each image; a teacher, the moving average of
the student, sees the global ones. The student learns to say of every crop what the teacher says of
the other global crops. The teacher's outputs are centred and sharpened, so that neither one output
nor the uniform one wins. The teacher's backbone is handed on; kNN and probes judge it.

As in the paper (section 3, appendix) and its code: projection head, loss, multi-crop, moving
averages, cosine schedules of the teacher's momentum and of the weight decay
(`optim.weight_decay_end`), warm-up of its temperature, a last layer of the head that does not learn
at first, AdamW. The teacher has no drop-path; its batch norms normalise with the
statistics of its own views and keep their own running ones. Not in the paper:

* The deviation of the blur, 0.1 to 2 pixels at 224, scales with `image_size`.
* `backbone.frozen_blocks` keeps the first blocks, and what is outside the blocks, as they were.

The defaults are close to the paper's, for many thousands of steps. In a few hundred the teacher
hardly moves, and its output becomes uniform (`teacher_entropy` close to `log(prototypes)`). With
`prototypes=256`, `bottleneck_width=32`, `momentum=0.99`, `centre_momentum=0.5` and
`teacher_temperature=(0.02, 0.02)` a small ViT stayed away from both collapses in 200 steps (drawn
images of 64 pixels, batch 64, one seed). The loss rises while the centre settles.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax import augment
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig, Execution, create_abstract
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn.linear import linear, trunc_normal
from fmi_jax.nn.mlp import gelu
from fmi_jax.protocols import monitor, pretraining
from fmi_jax.protocols.spec import Fit, Images, Parts
from fmi_jax.rules import fraction, low_high, not_negative, positive
from fmi_jax.settings import BaseConfig, section
from fmi_jax.tasks.self_supervision import Distillation, SelfSupervision, unit, unit_columns
from fmi_jax.training.loop import Plan
from fmi_jax.training.optim import Held
from fmi_jax.training.step import Arrays, Follow

_PANELS = {
    "Loss": "loss",
    "Teacher's entropy, nats": "teacher_entropy",
    "Divergence (KL), nats": "kl",
}
_LEFT = 0.01  # nats of entropy, or of divergence, below which nothing is left to learn


@dataclasses.dataclass(slots=True)
class DinoConfig(monitor.MonitorConfig):
    """Self-supervised pre-training (protocol `dino`); `image_size` is the side of global crops.

    Attributes:
      prototypes: width of the head's output; the paper's is 65536, for ImageNet.
      hidden_width, bottleneck_width: widths inside the head.
      momentum: momentum of the teacher at the first step; rises to 1 along a cosine.
      centre_momentum: momentum of the centre of the teacher's outputs.
      student_temperature: temperature of the student's softmax.
      teacher_temperature: temperature of the teacher's softmax at the first step, and after its
        warm-up.
      temperature_warmup: share of all steps in which the teacher's temperature rises.
      temperature_epochs: epochs in which it rises instead, by a step with each of them, the last
        being at the second temperature already, as in the paper's code; 0: `temperature_warmup`.
      held_epochs: first epochs in which the last layer of the head does not learn; 1 in the
        paper's code.
      anchor: share of the first weights in the teacher's backbone, which keeps a continued
        pre-training close to where it began; 0: none.
      local_crops: number of local crops; 0: none.
      local_size: side of local crops in pixels.
      global_scale, local_scale: range of each crop's area, relative to the prepared image.
    """

    prototypes: int = positive(4096)
    hidden_width: int = positive(2048)
    bottleneck_width: int = positive(256)
    momentum: float = fraction(0.996)
    centre_momentum: float = fraction(0.9)
    student_temperature: float = positive(0.1)
    teacher_temperature: tuple[float, float] = low_high((0.04, 0.07))
    temperature_warmup: float = fraction(0.3)
    temperature_epochs: int = not_negative(0)
    held_epochs: float = not_negative(0.0)
    anchor: float = fraction(0.0)
    local_crops: int = not_negative(6)
    local_size: int = positive(96)
    global_scale: tuple[float, float] = low_high((0.4, 1.0), at_most=1)
    local_scale: tuple[float, float] = low_high((0.05, 0.4), at_most=1)


class ProjectionHead(nnx.Module):
    """Three linear layers with GELU between them, l2 normalisation, and a layer of unit vectors.

    The last layer is weight-normalised with its scale fixed at 1 and has no bias: each column of
    `prototypes` is divided by its norm, so that a logit is the cosine of the projected feature and
    a prototype.

    Args:
      width: width of the feature.
      options: widths of the layers.
      dtype: compute type of matrix products; both normalisations are in float32.
      rngs: stream `params`.
    """

    def __init__(self, width: int, options: DinoConfig, *, dtype: Any, rngs: nnx.Rngs):
        hidden, bottleneck = options.hidden_width, options.bottleneck_width
        self.dtype = dtype
        self.fc1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, hidden, dtype=dtype, rngs=rngs)
        self.fc3 = linear(hidden, bottleneck, dtype=dtype, rngs=rngs)
        self.prototypes = nnx.Param(
            trunc_normal(rngs.params(), (bottleneck, options.prototypes), jnp.float32)
        )

    def __call__(self, features: Float[Array, "*n f"]) -> Float[Array, "*n k"]:
        """Logits in float32, from -1 to 1."""
        return jnp.matmul(
            self.project(features).astype(self.dtype),
            unit_columns(self.prototypes[...]).astype(self.dtype),
            preferred_element_type=jnp.float32,
        )

    def project(self, features: Float[Array, "*n f"]) -> Float[Array, "*n w"]:
        """Unit vectors in float32 that the last layer compares with its prototypes."""
        hidden = gelu(self.fc2(gelu(self.fc1(features))))
        return unit(self.fc3(hidden))


class Dino(nnx.Module):
    """A student and its teacher.

    Attributes:
      backbone, head: the student.
      teacher: backbone and head that follow the student's.
      anchor: backbone as it began, where `options.anchor` holds the teacher to it; a follower.
      centre: moving average of the teacher's logits, `[k]`; a follower.
      temperature: temperature of the teacher's softmax at the coming step; a follower, so that the
        schedule is saved with everything else.
    """

    def __init__(self, parts: Parts, options: DinoConfig):
        backbone, new_backbone = parts.backbone, parts.new_backbone
        assert new_backbone is not None
        width, dtype = backbone.arch.feature_width, backbone.execution.dtype
        self.backbone = backbone
        self.head = ProjectionHead(width, options, dtype=dtype, rngs=parts.rngs)
        self.teacher = pretraining.Teacher(
            new_backbone(), ProjectionHead(width, options, dtype=dtype, rngs=parts.rngs)
        )
        if options.anchor:
            self.anchor = new_backbone()
        self.centre = nnx.Variable(jnp.zeros(options.prototypes, jnp.float32))
        self.temperature = nnx.Variable(jnp.float32(options.teacher_temperature[0]))

    def __call__(
        self, crops: tuple[Float[Array, "b _ _ _ c"], ...], *, rngs: nnx.Rngs | None = None
    ) -> Distillation:
        """Logits of every crop; global crops are the first of `crops`."""

        def student(images: Array) -> Array:
            return self.backbone.features(images, rngs=rngs).pooled

        def teacher(images: Array) -> Array:
            return self.teacher.backbone.features(images, rngs=rngs).pooled

        return Distillation(
            student=self.head(augment.each_view(student, crops)),
            teacher=jax.lax.stop_gradient(self.teacher.head(augment.each_view(teacher, crops[:1]))),
            centre=self.centre[...],
            temperature=self.temperature[...],
        )


def _views(options: DinoConfig, side: int) -> tuple[augment.View, ...]:
    """Describe the views: the published ones, in the sizes and areas of this experiment."""
    first, second, local = augment.dino_views()
    found = [pretraining.view(one, options.global_scale, side, side) for one in (first, second)]
    if options.local_crops:
        count, size = options.local_crops, options.local_size
        found.append(pretraining.view(local, options.local_scale, size, side, count))
    return tuple(found)


def temperature(options: DinoConfig, step: Any, schedule: Plan) -> Any:
    """Temperature of the teacher's softmax at a step."""
    start, end = options.teacher_temperature
    if epochs := options.temperature_epochs:
        risen = jnp.floor(step / schedule.steps_per_epoch) / max(1, epochs - 1)
        return start + (end - start) * jnp.minimum(risen, 1.0)
    warmup = max(1.0, options.temperature_warmup * schedule.total_steps)
    return start + (end - start) * jnp.minimum(step / warmup, 1.0)


def follow(options: DinoConfig, schedule: Plan) -> Follow:
    """Make the update of teacher, centre and temperature after a step."""

    def after(params: Arrays, followers: Arrays, seen: Arrays, step: Array) -> Arrays:
        keep = pretraining.momentum(options.momentum, step / schedule.total_steps)
        kept = options.centre_momentum
        centre = kept * followers["centre"] + (1 - kept) * seen["teacher"]
        warm = jnp.asarray(temperature(options, step + 1, schedule), jnp.float32)
        moved = pretraining.averaged(params, followers, keep, options.anchor)
        return moved | {"centre": centre, "temperature": warm}

    return after


def fit(config: BaseConfig, arch: ArchConfig) -> Fit:
    """Describe the pre-training of a backbone."""
    options = section(config, DinoConfig)
    return Fit(
        module=lambda parts: Dino(parts, options),
        learns=pretraining.learns(config, arch),
        follows=lambda name: pretraining.follows(name) or name in ("centre", "temperature"),
        begins=pretraining.begins,
        task=SelfSupervision(options.student_temperature),
        augment=lambda pixels: pretraining.cropping(_views(options, config.image_size), pixels),
        follow=lambda plan: follow(options, plan),
        held=lambda plan: (
            Held(
                lambda name: name == "head.prototypes",
                round(options.held_epochs * plan.steps_per_epoch),
            )
            if options.held_epochs
            else None
        ),
        logged=lambda seen: {name: seen[name] for name in ("teacher_entropy", "kl")},
        keeps="last",
        monitor=functools.partial(monitor.watch, options, functools.partial(_collapsed, config)),
        hands_on="teacher.backbone",
    )


def _check(config: BaseConfig, info: DatasetInfo) -> None:
    """Refuse crops that the backbone cannot take."""
    options, name = section(config, DinoConfig), config.backbone.name
    if not options.local_crops:
        return
    spec, side, local = BACKBONES[name], config.image_size, options.local_size
    arch = dataclasses.replace(spec.arch, in_channels=info.channels).sized(side, side)
    if arch.sized(local, local) != arch:
        raise UsageError(
            f"protocol 'dino': {name} has positions for one size of images ({side} pixels) and"
            f" cannot take local crops of {local}; expected dino.local_crops=0, or a backbone for"
            " images of any size, such as a DeiT, DINOv2, Swin or ResNet."
        )
    try:
        create_abstract(spec.family, arch, Execution()).grid(local, local)
    except UsageError as error:
        raise UsageError(f"dino.local_size={local} does not suit {name}: {error}") from None


def _images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    """Count crops in whole images: the student sees all of them, the teacher the global ones."""
    options = section(config, DinoConfig)
    seen = pretraining.seen_images(config, counts)
    local = options.local_crops * (options.local_size / config.image_size) ** 2
    return Images(round(seen * (pretraining.GLOBAL + local)), pretraining.GLOBAL * seen)


def _uniform(config: BaseConfig) -> float:
    """Entropy of the uniform distribution over all prototypes, in nats."""
    return math.log(section(config, DinoConfig).prototypes)


def _collapsed(config: BaseConfig, scalars: Mapping[str, float]) -> str:
    """Say that nothing is left to learn, or that there is no difference; empty otherwise."""
    entropy = scalars["teacher_entropy"]
    if _uniform(config) - entropy < _LEFT:
        return (
            f"the teacher says the same of everything: its entropy, {entropy:.3f}, is that of the"
            f" uniform distribution over {section(config, DinoConfig).prototypes} prototypes"
        )
    if scalars["kl"] < _LEFT:
        return "the student says of all images what the teacher says (divergence below 0.01 nats)"
    return ""


def _warn(config: BaseConfig, last: Mapping[str, float]) -> Iterator[str]:
    if words := _collapsed(config, last):
        yield f"The pre-training has collapsed: {words}."


SPEC = pretraining.fit_spec(
    "dino",
    "DINO",
    fit=fit,
    options=DinoConfig,
    check=_check,
    judge=pretraining.judge_of(
        "dino",
        DinoConfig,
        _PANELS,
        _images,
        _warn,
        lambda config: {"uniform_entropy": ("Entropy if uniform", _uniform(config))},
    ),
    small={
        "dino.prototypes": 128,
        "dino.hidden_width": 64,
        "dino.bottleneck_width": 32,
        "dino.local_crops": 0,  # which not every backbone takes
    },
)
