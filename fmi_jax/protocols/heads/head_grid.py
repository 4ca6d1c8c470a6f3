"""Many linear heads side by side on one frozen feature."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.nn.linear import linear


class HeadStack(nnx.Module):
    """`g` linear heads: every array has the head as its first axis.

    Args:
      width: of the feature, `f`.
      num_classes: `k`.
      rngs: one for each seed, drawn from as `LinearClassifier` draws its head.
      copies: how many heads start from each seed; head `i * len(rngs) + j` is the `i`-th of
        seed `j`.

    Attributes:
      kernel, bias: `[g, f, k]` and `[g, k]`.
      best_kernel, best_bias: copies taken at each head's best validation; followers.
    """

    def __init__(self, width: int, num_classes: int, rngs: Sequence[nnx.Rngs], copies: int):
        heads = [linear(width, num_classes, dtype=jnp.float32, rngs=each) for each in rngs]
        kernel = jnp.tile(jnp.stack([head.kernel[...] for head in heads]), (copies, 1, 1))
        bias = jnp.zeros((len(kernel), num_classes))
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)
        self.best_kernel, self.best_bias = nnx.Variable(kernel), nnx.Variable(bias)

    def __call__(self, features: Float[Array, "b f"]) -> Float[Array, "b g k"]:
        """Logits of every head in float32."""
        features = features.astype(jnp.float32)
        return jnp.einsum("bf,gfk->bgk", features, self.kernel[...]) + self.bias[...]


class HeadGrid(nnx.Module):
    """A frozen backbone, computed once, with `g` linear heads.

    Args:
      backbone: the feature extractor, always in evaluation mode.
      num_classes: width `k` of the logits of each head.
      rngs, copies: see `HeadStack`.
    """

    def __init__(self, backbone: Backbone, num_classes: int, rngs: Sequence[nnx.Rngs], copies: int):
        self.backbone = backbone
        self.head = HeadStack(backbone.arch.feature_width, num_classes, rngs, copies)

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b g k"]:
        """Logits of every head in float32."""
        del rngs
        return self.head(self.backbone.features(images, rngs=None).pooled)


class FeatureHeads(nnx.Module):
    """The heads of a `HeadGrid` without its backbone: on features that are computed already."""

    def __init__(self, head: HeadStack):
        self.head = head

    def __call__(
        self, features: Float[Array, "b f"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b g k"]:
        """Logits of every head in float32."""
        del rngs
        return self.head(features)
