"""A small convolutional decoder on the features of four depths."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import ArchConfig, Backbone
from fmi_jax.nn.conv import convolution
from fmi_jax.nn.linear import linear
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.protocols.per_pixel import head_spec, upsampled
from fmi_jax.rules import positive

_NORM_EPS = 1e-6
_DEPTHS = 4


@dataclasses.dataclass(slots=True)
class DecoderConfig:
    """Small convolutional decoder (head `decoder`).

    Attributes:
      width: channels of its layers.
    """

    width: int = positive(128)


class Decoder(nnx.Module):
    """A backbone with a small convolutional decoder that reads it at up to four depths.

    Args:
      backbone: the feature extractor.
      num_classes: width `k` of the logits.
      width: channels of the decoder's layers.
      eval_mode: True if the backbone is always in evaluation mode.
      rngs: stream that draws the decoder.
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
        self.backbone = backbone
        self.eval_mode = eval_mode
        arch = backbone.arch
        widths = [arch.truncated(block).token_width for block in depths(arch)]
        self.head = DecoderHead(
            widths, width, num_classes, dtype=backbone.execution.dtype, rngs=rngs
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        features = self.backbone.features_at(
            images, depths(self.backbone.arch), rngs=None if self.eval_mode else rngs
        )
        size = images.shape[1], images.shape[2]
        return upsampled(self.head([each.tokens for each in features], size), *size)


class DecoderHead(nnx.Module):
    """Token grids of several depths, brought to one width and size and added up, then upsampled.

    Two stages, each with a 3 x 3 convolution, double the sides of the finest grid, up to a quarter
    of the image's. Norms look at one pixel of one image only, so nothing depends on the batch.

    Args:
      widths: width of the tokens at each depth.
      width: channels of the decoder's layers.
      num_classes: width `k` of the logits.
      dtype: compute type of convolutions and projections.
      rngs: stream `params`.
    """

    def __init__(
        self, widths: Sequence[int], width: int, num_classes: int, *, dtype: Any, rngs: nnx.Rngs
    ):
        self.norms = nnx.List([LayerNorm(each, eps=_NORM_EPS) for each in widths])
        self.projections = nnx.List(
            [linear(each, width, dtype=dtype, rngs=rngs) for each in widths]
        )
        self.stages = nnx.List([_Stage(width, dtype=dtype, rngs=rngs) for _ in range(2)])
        self.linear = linear(width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, grids: Sequence[Float[Array, "b _ _ _"]], image_size: tuple[int, int]
    ) -> Float[Array, "b h w k"]:
        """Logits in float32, for grids of an image of that height and width."""
        height, width = (max(grid.shape[axis] for grid in grids) for axis in (1, 2))
        x = jnp.zeros(())
        for grid, norm, project in zip(grids, self.norms, self.projections, strict=True):
            x = x + upsampled(project(norm(grid)), height, width)
        for stage in self.stages:
            height, width = (
                max(side, min(2 * side, whole // 4))
                for side, whole in zip((height, width), image_size, strict=True)
            )
            x = stage(upsampled(x, height, width))
        return self.linear(x)


class _Stage(nnx.Module):
    """A 3 x 3 convolution, a layer norm and GELU."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            width,
            width,
            (3, 3),
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.he_normal(),
            conv_general_dilated=convolution,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, eps=_NORM_EPS)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        return nnx.gelu(self.norm(self.conv(x)))


def depths(arch: ArchConfig) -> list[int]:
    """Choose the blocks that a decoder reads: evenly spaced, the last one among them."""
    return sorted({max(arch.num_blocks * i // _DEPTHS - 1, 0) for i in range(1, _DEPTHS + 1)})


SPEC = head_spec(
    "decoder", "small convolutional decoder", Decoder, DecoderConfig, {"decoder.width": 24}
)
