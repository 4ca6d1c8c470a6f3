"""SimSiam (arXiv 2011.10566): pre-training without labels, negative pairs or a teacher.

One network projects both views and predicts from its projection of one what it projects of the
other; no gradient flows into the target. As in the paper: a projection of three layers with batch
norms, a prediction with a narrow hidden layer, each view through the network by itself. The views
are those of protocol `byol`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols import monitor, pretraining
from fmi_jax.protocols.spec import Fit, Parts
from fmi_jax.rules import low_high, positive
from fmi_jax.settings import BaseConfig, section
from fmi_jax.tasks.self_supervision import Predictions, ViewPrediction


@dataclasses.dataclass(slots=True)
class SimSiamConfig(monitor.MonitorConfig):
    """Self-supervised pre-training (protocol `simsiam`); `image_size` is the side of the views.

    Attributes:
      projection_width: width of the projection and of its hidden layers.
      prediction_width: width inside the prediction.
      scale: range of each view's area, relative to the prepared image.
    """

    projection_width: int = positive(2048)
    prediction_width: int = positive(512)
    scale: tuple[float, float] = low_high((0.4, 1.0), at_most=1)


class SimSiam(nnx.Module):
    """A network that predicts its own projections.

    Attributes:
      backbone: network that is pre-trained.
      head: projection and prediction.
    """

    def __init__(self, parts: Parts, options: SimSiamConfig):
        backbone, width = parts.backbone, options.projection_width
        make: Any = {"dtype": backbone.execution.dtype, "rngs": parts.rngs}
        inside = (backbone.arch.feature_width, width, width, width)
        self.backbone = backbone
        self.head = pretraining.Predictor(
            pretraining.BatchNormMLP(inside, last_norm=True, **make),
            pretraining.BatchNormMLP((width, options.prediction_width, width), **make),
        )

    def __call__(
        self, views: tuple[Float[Array, "b 2 _ _ c"], ...], *, rngs: nnx.Rngs | None = None
    ) -> Predictions:
        """Prediction and target of both views."""
        training, head = rngs is not None, self.head
        projected = [
            head.projection(
                self.backbone.features(views[0][:, i], rngs=rngs).pooled, training=training
            )
            for i in range(pretraining.GLOBAL)
        ]
        predicted = [head.prediction(one, training=training) for one in projected]
        return Predictions(jnp.stack(predicted, 1), jnp.stack(projected, 1))


def fit(config: BaseConfig, arch: ArchConfig) -> Fit:
    """Describe the pre-training of a backbone."""
    options = section(config, SimSiamConfig)
    return Fit(
        module=lambda parts: SimSiam(parts, options),
        learns=pretraining.learns(config, arch),
        task=ViewPrediction(scale=1.0, offset=-1.0),
        augment=lambda pixels: pretraining.cropping(
            pretraining.two_views(options.scale, config.image_size), pixels
        ),
        logged=pretraining.view_scalars,
        keeps="last",
        monitor=pretraining.watch_views(options),
    )


SPEC = pretraining.fit_spec(
    "simsiam",
    "SimSiam",
    fit=fit,
    options=SimSiamConfig,
    judge=pretraining.view_judge("simsiam", SimSiamConfig, teacher=False),
    small={"simsiam.projection_width": 64, "simsiam.prediction_width": 16},
)
