"""Focal Transformer (arXiv 2107.00641): focal self-attention, on maps that halve by stage.

A block is a stage. The convolution that makes a stage's map is part of it, so that what a stage
puts out is on its own grid.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import NormedStagedArch, NormedStages
from fmi_jax.models.base import (
    ArchConfig,
    BackboneSpec,
    Execution,
    Tiny,
    WeightsSource,
    create_abstract,
    parameters,
)
from fmi_jax.nn.focal_attention import FocalAttention
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.stage import ConvEmbed, MapMlp, stages
from fmi_jax.nn.transformer import Block

_LAYER_SCALE = 1e-4  # initial value in the reference
_GROUP_NORM_EPS = 1e-5  # PyTorch's own, which the reference leaves as it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocalTransformerArch(NormedStagedArch):
    """The shape of a Focal Transformer.

    Attributes:
      patch_size: pixels per side of the patches that enter the first stage.
      num_heads: heads of each attention, by stage; divides the stage's width.
      windows: side of each stage's windows, in tokens of that stage.
      expand_sizes: tokens around a window that are attended to one by one, for each block of
        each stage. 0 in the last stage of the published networks, whose map was one window.
      focal_levels: levels of attention in each stage, that of single tokens counted.
      focal_windows: side of the pooled surroundings at each stage's second level; odd.
      conv_embed: overlapping convolutions for stem (7x7, stride 4) and down-sampling (3x3).
      shift: True to shift every other block's windows.
      pre_norm: another norm before each down-sampling.
      layer_scale: learned factors on the residual branches.
    """

    patch_size: int
    num_heads: tuple[int, ...]
    windows: tuple[int, ...]
    expand_sizes: tuple[tuple[int, ...], ...]
    focal_levels: tuple[int, ...]
    focal_windows: tuple[int, ...]
    conv_embed: bool
    shift: bool
    pre_norm: bool
    layer_scale: bool


_TINY = FocalTransformerArch(
    in_channels=3,
    patch_size=3,
    width=6,
    depths=(1, 2),
    num_heads=(2, 3),
    windows=(5, 3),
    mlp_ratio=1.5,
    norm_eps=1e-5,
    final_norm=True,
    expand_sizes=((2,), (1, 0)),
    focal_levels=(3, 2),
    focal_windows=(3, 1),
    conv_embed=False,
    shift=False,
    pre_norm=False,
    layer_scale=False,
)


class FocalTransformer(NormedStages[FocalTransformerArch]):
    """A Focal Transformer; `tokens` is the normed output of the last stage, `pooled` its mean.

    There is no [cls] token. The features of a network that ends after an earlier stage have no
    norm, as only the last stage was published with one.

    Any image is taken of which something reaches the last stage. As published, a network is
    built for one image size, and has windows no larger than its maps; so weights fit the sizes
    that give the same windows, and there we are the same. At other sizes each stage keeps the
    windows that its weights were made for. Pixels and tokens that fill no whole patch on the
    right and below are not seen, as in the reference.

    Reference: `classification/focal_transformer.py` of microsoft/Focal-Transformer.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    tiny = (
        Tiny("focal_transformer", _TINY, 37),
        Tiny(
            "focal_transformer_options",
            dataclasses.replace(
                _TINY, conv_embed=True, shift=True, pre_norm=True, layer_scale=True
            ),
            37,
        ),
    )

    def __init__(self, arch: FocalTransformerArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        dtype = execution.dtype
        shared = {"fill": False, "eps": arch.norm_eps, "dtype": dtype, "rngs": rngs}
        self.patch_embed = ConvEmbed(
            arch.in_channels,
            arch.width,
            kernel_size=7 if arch.conv_embed else arch.patch_size,
            stride=4 if arch.conv_embed else arch.patch_size,
            padding=2 if arch.conv_embed else 0,
            **shared,
        )

        def block(stage: int, i: int, drop_path: float) -> Block:
            width = arch.width * 2**stage
            return Block(
                width,
                attn=FocalAttention(
                    width,
                    arch.num_heads[stage],
                    window=arch.windows[stage],
                    expand=arch.expand_sizes[stage][i],
                    levels=arch.focal_levels[stage],
                    region=arch.focal_windows[stage],
                    shift=arch.shift and i % 2 == 1,
                    dtype=dtype,
                    rngs=rngs,
                ),
                mlp=MapMlp(width, int(width * arch.mlp_ratio), dtype=dtype, rngs=rngs),
                eps=arch.norm_eps,
                layer_scale=_LAYER_SCALE if arch.layer_scale else None,
                drop_path=drop_path,
            )

        def downsample(stage: int) -> ConvEmbed:
            width = arch.width * 2 ** (stage - 1)
            return (PreNormConvEmbed if arch.pre_norm else ConvEmbed)(
                width,
                2 * width,
                kernel_size=3 if arch.conv_embed else 2,
                stride=2,
                padding=1 if arch.conv_embed else 0,
                **shared,
            )

        self.blocks = nnx.List(stages(arch.depths, execution.drop_path, downsample, block))
        if arch.final_norm:
            self.norm = LayerNorm(arch.feature_width, eps=arch.norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches; `UsageError` if nothing reaches the last stage."""
        grid = rest = self.patch_embed.grid(height, width)
        for stage in self.blocks[1:]:
            rest = stage.downsample.grid(*rest)
        if min(*grid, *rest) < 1:
            least = self.arch.patch_size * 2 ** (self.arch.num_blocks - 1)
            raise UsageError(
                f"image size {height}x{width}: nothing of it would reach the last stage;"
                f" nearest is {max(height, least)}x{max(width, least)}."
            )
        return grid

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The map of normed patches that enters stage 0."""
        return self.patch_embed(images)

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Parameters for fewer focal levels: those of the levels that are left.

        The study builds the network with a single level and loads what fits of the published
        weights, which have two.
        """
        if source == target:
            return dict(params)
        kept = parameters(create_abstract(cls, target, Execution()))
        return {name: value for name, value in params.items() if name in kept}


class PreNormConvEmbed(ConvEmbed):
    """A `ConvEmbed` of tokens that are first normed over the whole map of an image."""

    def __init__(self, in_width: int, width: int, **options: Any):
        super().__init__(in_width, width, **options)
        self.pre_norm = MapNorm(in_width)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The coarser grid."""
        return super().__call__(self.pre_norm(x))


class MapNorm(nnx.Module):
    """Group norm with one group: over all tokens and channels of an image, in float32.

    Args:
      width: width of the tokens.
    """

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """`(x - mean) / sqrt(variance + eps) * scale + bias`."""
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=(1, 2, 3), keepdims=True)
        variance = jnp.square(x).mean(axis=(1, 2, 3), keepdims=True)
        return x / jnp.sqrt(variance + _GROUP_NORM_EPS) * self.scale[...] + self.bias[...]


def _spec(size: str, width: int, depth: int, heads: int, num_params: int) -> BackboneSpec:
    depths = (2, 2, depth, 2)
    return BackboneSpec(
        name=f"focal_{size}",
        family=FocalTransformer,
        arch=FocalTransformerArch(
            in_channels=3,
            patch_size=4,
            width=width,
            depths=depths,
            num_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
            windows=(7, 7, 7, 7),
            expand_sizes=(*((3,) * depth for depth in depths[:3]), (0, 0)),
            focal_levels=(2, 2, 2, 2),
            focal_windows=(7, 5, 3, 1),
            mlp_ratio=4.0,
            conv_embed=False,
            shift=False,
            pre_norm=False,
            layer_scale=False,
            norm_eps=1e-5,
            final_norm=True,
        ),
        num_params=num_params,
        patch_size=32,
        image_size=224,
        sources=(
            WeightsSource(
                tag="in1k",
                url="https://projects4jw.blob.core.windows.net/model/focal-transformer/imagenet1k"
                f"/focal-{size}-is224-ws7.pth",
                sha256=None,
                layout="focal_transformer",
                licence="MIT",
            ),
        ),
        note="supervised on ImageNet-1k; focal self-attention",
    )


SPECS = (
    _spec("tiny", 96, 6, 3, 28_111_380),
    _spec("small", 96, 18, 3, 50_372_940),
    _spec("base", 128, 18, 4, 88_790_400),
)
