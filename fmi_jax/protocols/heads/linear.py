"""A backbone with one linear layer on its pooled feature."""

from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.protocols.spec import HeadSpec


class LinearClassifier(nnx.Module):
    """`head(backbone.features(images).pooled)`.

    Args:
      backbone: the feature extractor.
      num_classes: width `k` of the logits.
      eval_mode: True if the backbone is always in evaluation mode.
      rngs: stream that draws the head: a truncated normal of std 0.02, zero bias (as DeiT).
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, eval_mode: bool, rngs: nnx.Rngs):
        self.backbone = backbone
        self.eval_mode = eval_mode
        self.head = nnx.Linear(
            backbone.arch.feature_width,
            num_classes,
            kernel_init=nnx.initializers.truncated_normal(0.02),
            bias_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        features = self.backbone.features(images, rngs=None if self.eval_mode else rngs)
        return self.head(features.pooled.astype(jnp.float32))


SPEC = HeadSpec(
    name="linear",
    summary="linear head",
    build=lambda parts: LinearClassifier(
        parts.backbone, parts.num_classes, eval_mode=parts.eval_mode, rngs=parts.rngs
    ),
)
