"""BYOL (arXiv 2006.07733): pre-training without labels and without negative pairs.

A student and its teacher, the moving average of the student, each project a view; the student
predicts from its projection of one view what the teacher's is of the other. The loss adds both
directions. As in the paper: projection and prediction of one hidden layer with batch norm, cosine
schedule of the teacher's momentum to 1; each view goes through the networks by itself, so batch
norms see one view at a time. The views are DINO's two global ones, as in the second study, whose
code compares a view with itself (M2 in docs/protocols.md).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols import monitor, pretraining
from fmi_jax.protocols.spec import Fit, Parts
from fmi_jax.rules import fraction, low_high, positive
from fmi_jax.settings import BaseConfig, section
from fmi_jax.tasks.self_supervision import Predictions, ViewPrediction
from fmi_jax.training.loop import Plan
from fmi_jax.training.step import Arrays, Follow


@dataclasses.dataclass(slots=True)
class ByolConfig(monitor.MonitorConfig):
    """Self-supervised pre-training (protocol `byol`); `image_size` is the side of the views.

    Attributes:
      hidden_width: width inside projection and prediction.
      projection_width: width of the projection.
      momentum: momentum of the teacher at the first step; rises to 1 along a cosine.
      anchor: share of the first weights in the teacher's backbone, which keeps a continued
        pre-training close to where it began; 0: none.
      scale: range of each view's area, relative to the prepared image.
    """

    hidden_width: int = positive(4096)
    projection_width: int = positive(256)
    momentum: float = fraction(0.99)
    anchor: float = fraction(0.0)
    scale: tuple[float, float] = low_high((0.4, 1.0), at_most=1)


class Byol(nnx.Module):
    """A student and its teacher.

    Attributes:
      backbone, head: the student.
      teacher: backbone and projection that follow the student's.
      anchor: backbone as it began, where `options.anchor` holds the teacher to it; a follower.
    """

    def __init__(self, parts: Parts, options: ByolConfig):
        backbone, new_backbone = parts.backbone, parts.new_backbone
        assert new_backbone is not None
        hidden, width = options.hidden_width, options.projection_width
        inside = (backbone.arch.feature_width, hidden, width)
        make: Any = {"dtype": backbone.execution.dtype, "rngs": parts.rngs}
        self.backbone = backbone
        self.head = pretraining.Predictor(
            pretraining.BatchNormMLP(inside, **make),
            pretraining.BatchNormMLP((width, hidden, width), **make),
        )
        self.teacher = pretraining.Teacher(
            new_backbone(),
            pretraining.Projector(pretraining.BatchNormMLP(inside, **make)),
        )
        if options.anchor:
            self.anchor = new_backbone()

    def __call__(
        self, views: tuple[Float[Array, "b 2 _ _ c"], ...], *, rngs: nnx.Rngs | None = None
    ) -> Predictions:
        """Prediction and target of both views."""

        def project(network: Any, i: int) -> Float[Array, "b d"]:
            feature = network.backbone.features(views[0][:, i], rngs=rngs).pooled
            return network.head.projection(feature, training=rngs is not None)

        each = range(pretraining.GLOBAL)
        predict = self.head.prediction
        return Predictions(
            jnp.stack([predict(project(self, i), training=rngs is not None) for i in each], 1),
            jnp.stack([project(self.teacher, i) for i in each], 1),
        )


def follow(options: ByolConfig, schedule: Plan) -> Follow:
    """Make the update of the teacher after a step."""

    def after(params: Arrays, followers: Arrays, seen: Arrays, step: Array) -> Arrays:
        del seen
        keep = pretraining.momentum(options.momentum, step / schedule.total_steps)
        return pretraining.averaged(params, followers, keep, options.anchor)

    return after


def fit(config: BaseConfig, arch: ArchConfig) -> Fit:
    """Describe the pre-training of a backbone."""
    options = section(config, ByolConfig)
    return Fit(
        module=lambda parts: Byol(parts, options),
        learns=pretraining.learns(config, arch),
        follows=pretraining.follows,
        begins=pretraining.begins,
        task=ViewPrediction(scale=4.0, offset=0.0),
        augment=lambda pixels: pretraining.cropping(
            pretraining.two_views(options.scale, config.image_size), pixels
        ),
        follow=lambda plan: follow(options, plan),
        logged=pretraining.view_scalars,
        keeps="last",
        monitor=pretraining.watch_views(options),
        hands_on="teacher.backbone",
    )


SPEC = pretraining.fit_spec(
    "byol",
    "BYOL",
    fit=fit,
    options=ByolConfig,
    judge=pretraining.view_judge("byol", ByolConfig, teacher=True),
    small={"byol.hidden_width": 64, "byol.projection_width": 32},
)
