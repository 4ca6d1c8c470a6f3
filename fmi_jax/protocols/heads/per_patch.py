"""A linear layer on each patch, whose logits are upsampled to the pixels."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.nn.linear import linear
from fmi_jax.protocols.per_pixel import head_spec, upsampled


class PerPatchClassifier(nnx.Module):
    """A backbone with one linear layer on each patch; its logits are upsampled to the image.

    Args:
      backbone: the feature extractor.
      num_classes: width `k` of the logits.
      eval_mode: True if the backbone is always in evaluation mode.
      rngs: stream that draws the head: a truncated normal of std 0.02, zero bias.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, eval_mode: bool, rngs: nnx.Rngs):
        self.backbone = backbone
        self.eval_mode = eval_mode
        self.head = linear(backbone.arch.token_width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        features = self.backbone.features(images, rngs=None if self.eval_mode else rngs)
        return upsampled(self.head(features.tokens.astype(jnp.float32)), *images.shape[1:3])


SPEC = head_spec("per_patch", "linear layer on each patch", PerPatchClassifier)
