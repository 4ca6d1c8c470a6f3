"""UPerNet (arXiv 1807.10221): pooled context and a pyramid of features, for networks of stages."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import StageByStage
from fmi_jax.models.base import Backbone
from fmi_jax.nn import resize
from fmi_jax.nn.conv import ConvNorm
from fmi_jax.nn.linear import linear
from fmi_jax.nn.shards import num_shards
from fmi_jax.protocols.per_pixel import head_spec, upsampled
from fmi_jax.rules import positive

_BINS = (1, 2, 3, 6)


@dataclasses.dataclass(slots=True)
class UPerNetConfig:
    """Decoder of a UPerNet (head `upernet`).

    Attributes:
      width: channels of its layers.
    """

    width: int = positive(512)


class UPerNet(nnx.Module):
    """A backbone with the decoder of a UPerNet.

    Args:
      backbone: the feature extractor, a network of stages.
      num_classes: width `k` of the logits.
      width: channels of the decoder's layers.
      eval_mode: True if the backbone is always in evaluation mode; batch norms of the decoder are
        in training mode when it trains all the same.
      rngs: stream that draws the decoder.

    Raises:
      UsageError: the backbone is no network of stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        width: int,
        eval_mode: bool,
        rngs: nnx.Rngs,
    ):
        arch = backbone.arch
        if not isinstance(arch, StageByStage):
            raise UsageError(
                f"head 'upernet' reads maps that grow coarser from stage to stage, and those of a"
                f" {type(backbone).__name__} are all on one grid: expected a network of stages,"
                " such as resnet50 or swin_tiny, or head 'unet'."
            )
        self.backbone, self.eval_mode = backbone, eval_mode
        self.head = UPerNetHead(
            [arch.truncated(stage).token_width for stage in range(arch.num_blocks)],
            width,
            num_classes,
            dtype=backbone.execution.dtype,
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        features = self.backbone.features_at(
            images, range(self.backbone.arch.num_blocks), rngs=None if self.eval_mode else rngs
        )
        logits = self.head([each.tokens for each in features], training=rngs is not None)
        return upsampled(logits, *images.shape[1:3])


class UPerNetHead(nnx.Module):
    """Context pooled from the coarsest map, handed down to the finer ones, and all of them fused.

    Args:
      maps: channels of the maps, the finest first.
      width: channels of the layers.
      num_classes: width `k` of the logits.
      dtype: compute type of all but the logits.
      rngs: stream `params`.
    """

    def __init__(
        self, maps: Sequence[int], width: int, num_classes: int, *, dtype: Any, rngs: nnx.Rngs
    ):
        def layer(before: int, size: int) -> ConvNorm:
            return ConvNorm(before, width, size, dtype=dtype, rngs=rngs)

        *finer, last = maps
        self.pooled = nnx.List(layer(last, 1) for _ in _BINS)
        self.context = layer(last + len(_BINS) * width, 3)
        self.laterals = nnx.List(layer(before, 1) for before in finer)
        self.smooth = nnx.List(layer(width, 3) for _ in finer)
        self.fusion = layer(len(maps) * width, 3)
        self.linear = linear(width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]], *, training: bool
    ) -> Float[Array, "b h w k"]:
        """Logits in float32, at the size of the finest map.

        A training batch of one image raises `UsageError`: the mean of a map has no variance.
        """
        *finer, last = maps
        if training and len(last) * num_shards() == 1:
            raise UsageError(
                "a training batch of one image: the batch norm of head 'upernet' needs more than"
                " one value per channel; expected two images or more."
            )
        x = self.context(self._with_context(last, training), training=training)
        coarser = [x]  # the coarsest map first
        for lateral, grid in zip(reversed(self.laterals), reversed(finer), strict=True):
            x = lateral(grid, training=training) + _enlarged(x, grid)
            coarser.append(x)
        first, *others = coarser
        smoothed = [
            layer(x, training=training)
            for layer, x in zip(reversed(self.smooth), others, strict=True)
        ]
        joined = [_enlarged(x, maps[0]) for x in (*reversed(smoothed), first)]
        x = self.fusion(jnp.concatenate(joined, axis=-1), training=training)
        return self.linear(x.astype(jnp.float32))

    def _with_context(self, x: Float[Array, "b h w c"], training: bool) -> Float[Array, "b h w d"]:
        """`x` beside its means over 1, 2, 3 and 6 parts of each side, enlarged again."""
        parts = [x]
        for bins, layer in zip(_BINS, self.pooled, strict=True):
            rows, cols = (resize.adaptive(side, bins) for side in x.shape[1:3])
            means = layer(resize.resize(x, rows, cols), training=training)
            parts.append(_enlarged(means, x))
        return jnp.concatenate([part.astype(parts[-1].dtype) for part in parts], axis=-1)


def _enlarged(x: Float[Array, "b h w d"], like: Float[Array, "b h2 w2 e"]) -> Array:
    """`x` at the size of another map, bilinearly, in its own type."""
    return upsampled(x, *like.shape[1:3]).astype(x.dtype)


SPEC = head_spec(
    "upernet",
    "decoder of a UPerNet, on a network of stages",
    UPerNet,
    UPerNetConfig,
    {"upernet.width": 13, "backbone.name": "resnet_nano"},
)
