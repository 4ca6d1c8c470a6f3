"""A learned query that reads all tokens of a backbone, and a linear layer.

Not in the paper: what the tokens hold beside the pooled feature that a linear head reads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.base import Backbone
from fmi_jax.nn.linear import linear, trunc_normal
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.protocols.spec import HeadSpec
from fmi_jax.rules import not_negative
from fmi_jax.settings import section


@dataclasses.dataclass(slots=True)
class AttentiveConfig:
    """A learned query that pools the tokens of a frozen backbone (protocol `attentive_probe`).

    Attributes:
      num_heads: number of attention heads; divides the width of the tokens. 0: heads of 64
        channels or a little more, as in a ViT.
    """

    num_heads: int = not_negative(0)


_NORM_EPS = 1e-6
_HEAD_WIDTH = 64


class AttentionPool(nnx.Module):
    """Cross-attention of one learned query to the tokens: `softmax(q k^T / sqrt(d)) v`, by head.

    As the attentive probe of AIM (arXiv 2401.08541, section 4): the query needs no projection and
    the result none, for the linear layer behind it does both. In place of AIM's batch norm the
    tokens pass a layer norm, which does not look at other images.

    Args:
      width: width of the tokens.
      num_heads: number of heads; divides `width`.
      dtype: compute type of keys and values; softmax is in float32.
      rngs: stream `params`.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, eps=_NORM_EPS)
        self.query = nnx.Param(trunc_normal(rngs.params(), (num_heads, width // num_heads)))
        self.kv = linear(width, 2 * width, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """One token per image, float32."""
        b, n, d = tokens.shape
        query = self.query[...]
        heads, size = query.shape
        kv = self.kv(self.norm(tokens)).reshape(b, n, 2, heads, size)
        scores = jnp.einsum("hd,bnhd->bhn", query * size**-0.5, kv[:, :, 0].astype(jnp.float32))
        weights = jax.nn.softmax(scores)
        pooled = jnp.einsum("bhn,bnhd->bhd", weights, kv[:, :, 1].astype(jnp.float32))
        return pooled.reshape(b, d)


class AttentiveClassifier(nnx.Module):
    """`head(pool(tokens))`: of the grid, and of [cls] where the backbone has one.

    Args:
      backbone: the feature extractor.
      num_classes: width `k` of the logits.
      num_heads: heads of the attention; 0: as many as have 64 channels or more each.
      eval_mode: True if the backbone is always in evaluation mode.
      rngs: stream that draws pool and head: a truncated normal of std 0.02, zero bias.

    Raises:
      UsageError: `num_heads` does not divide the width of the tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        num_heads: int,
        eval_mode: bool,
        rngs: nnx.Rngs,
    ):
        width = backbone.arch.token_width
        valid = [n for n in range(1, width + 1) if width % n == 0]
        if not num_heads:
            num_heads = max([n for n in valid if width // n >= _HEAD_WIDTH], default=1)
        if width % num_heads:
            near = sorted(sorted(valid, key=lambda n: abs(n - num_heads))[:2])
            raise UsageError(
                f"attentive.num_heads={num_heads} does not divide the {width} channels of the"
                f" tokens; nearest valid: {' or '.join(map(str, near))}."
            )
        self.backbone = backbone
        self.eval_mode = eval_mode
        self.pool = AttentionPool(width, num_heads, dtype=backbone.execution.dtype, rngs=rngs)
        self.head = linear(width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        features = self.backbone.features(images, rngs=None if self.eval_mode else rngs)
        tokens = features.tokens.reshape(len(images), -1, features.tokens.shape[-1])
        if features.cls is not None:
            tokens = jnp.concatenate([features.cls[:, None].astype(tokens.dtype), tokens], axis=1)
        return self.head(self.pool(tokens))


SPEC = HeadSpec(
    name="attentive",
    summary="attention pooling and linear head",
    build=lambda parts: AttentiveClassifier(
        parts.backbone,
        parts.num_classes,
        num_heads=section(parts.config, AttentiveConfig).num_heads,
        eval_mode=parts.eval_mode,
        rngs=parts.rngs,
    ),
    options=AttentiveConfig,
    reads=("attentive",),
)
