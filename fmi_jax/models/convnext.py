"""ConvNeXt (arXiv 2201.03545): depth-wise convolutions and MLPs, on maps that halve from stage to
stage. DINOv3 (arXiv 2508.10104) distilled some of the same shape. A block is a stage."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import StageByStage
from fmi_jax.models.base import ArchConfig, Backbone, BackboneSpec, Execution, Tiny, WeightsSource
from fmi_jax.nn.conv import DepthwiseConv
from fmi_jax.nn.linear import trunc_normal
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.stage import ConvEmbed, stages
from fmi_jax.nn.transformer import LayerScale, drop_path
from fmi_jax.types import Features

_KERNEL = 7  # side of every depth-wise convolution, in pixels
_LAYER_SCALE = 1e-6  # initial value of the reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtArch(StageByStage):
    """The shape of a ConvNeXt.

    Attributes:
      patch_size: pixels per side of the patches that enter the first stage.
      depths: number of residual blocks in each stage.
      widths: channels of each stage.
      mlp_ratio: hidden width of the MLPs over the width of their stage.
      norm_eps: epsilon of every layer norm.
      final_norm: True if the network ends in a norm; False where it was cut off.
    """

    patch_size: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mlp_ratio: float
    norm_eps: float
    final_norm: bool

    @property
    def feature_width(self) -> int:
        """Width of the last stage."""
        return self.widths[-1]

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after stage `block`."""
        return dataclasses.replace(
            super().truncated(block), final_norm=self.final_norm and block == self.num_blocks - 1
        )


class ConvNeXtBlock(nnx.Module):
    """One residual branch: a depth-wise convolution, a norm and an MLP.

    Args:
      width: channels of the map.
      mlp_width: hidden width of the MLP.
      eps: epsilon of the layer norm.
      drop_path: stochastic-depth rate.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        *,
        mlp_width: int,
        eps: float,
        drop_path: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.drop_path = drop_path
        self.conv_dw = DepthwiseConv(
            width, _KERNEL, use_bias=True, init=trunc_normal, dtype=dtype, rngs=rngs
        )
        self.norm = LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_width, dtype=dtype, rngs=rngs)
        self.ls = LayerScale(width, _LAYER_SCALE)

    def __call__(
        self, x: Float[Array, "b h w d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w d"]:
        """The block's output, in the type of `x`."""
        return x + drop_path(self.ls(self.mlp(self.norm(self.conv_dw(x)))), self.drop_path, rngs)


class Downsample(ConvEmbed):
    """A layer norm, then a convolution that halves the map; an odd last row or column goes unread.

    Args:
      in_width: channels that enter.
      width: channels that leave.
      eps: epsilon of the layer norm.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(self, in_width: int, width: int, *, eps: float, dtype: Any, rngs: nnx.Rngs):
        super().__init__(
            in_width,
            width,
            kernel_size=2,
            stride=2,
            padding=0,
            fill=False,
            eps=None,
            dtype=dtype,
            rngs=rngs,
        )
        self.pre_norm = LayerNorm(in_width, eps=eps)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The coarser map."""
        return super().__call__(self.pre_norm(x))


class ConvNeXt(Backbone[ConvNeXtArch]):
    """A ConvNeXt; `pooled` is the norm of the last stage's mean, `tokens` the norm of its outputs.

    There is no [cls] token; what DINOv3 calls so is `pooled`. The features of a network that ends
    after an earlier stage have no norm, as only the last stage was published with one.

    Any image is taken whose pixels reach the last stage. Pixels that fill no whole patch on the
    right and below are not seen, as in the reference.

    Reference: `models/convnext.py` of facebookresearch/ConvNeXt.

    Args:
      arch: shape of the network.
      execution: compute type, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    tiny = (
        Tiny(
            "convnext",
            ConvNeXtArch(
                in_channels=3,
                patch_size=3,
                depths=(1, 2),
                widths=(5, 11),
                mlp_ratio=1.5,
                norm_eps=1e-6,
                final_norm=True,
            ),
            37,
        ),
    )

    def __init__(self, arch: ConvNeXtArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        shared = {"eps": arch.norm_eps, "dtype": execution.dtype, "rngs": rngs}

        self.stem = ConvEmbed(
            arch.in_channels,
            arch.widths[0],
            kernel_size=arch.patch_size,
            stride=arch.patch_size,
            padding=0,
            fill=False,
            **shared,
        )

        def downsample(stage: int) -> Downsample:
            return Downsample(arch.widths[stage - 1], arch.widths[stage], **shared)

        def block(stage: int, _: int, rate: float) -> ConvNeXtBlock:
            width = arch.widths[stage]
            return ConvNeXtBlock(
                width, mlp_width=int(width * arch.mlp_ratio), drop_path=rate, **shared
            )

        self.blocks = nnx.List(stages(arch.depths, execution.drop_path, downsample, block))
        if arch.final_norm:
            self.norm = LayerNorm(arch.feature_width, eps=arch.norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that leave the stem; `UsageError` if nothing reaches the last stage."""
        rows, cols = self.stem.grid(height, width)
        reach = 2 ** (self.arch.num_blocks - 1)
        if min(rows, cols) < reach:
            least = self.arch.patch_size * reach
            raise UsageError(
                f"image size {height}x{width}: nothing of it would reach the last stage; expected"
                f" at least {least}x{least}."
            )
        return rows, cols

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The map of normed patches that enters stage 0."""
        return self.stem(images)

    def readout(
        self, x: Float[Array, "b rows cols d"], block: int, grid: tuple[int, int]
    ) -> Features:
        """Features of a network that ends here; the norm is that of the last stage alone."""
        x = x.astype(jnp.float32)
        pooled = x.mean(axis=(1, 2))
        if self.arch.final_norm and block == self.arch.num_blocks - 1:
            return Features(self.norm(pooled), self.norm(x), None)
        return Features(pooled, x, None)


def _supervised(size: str, tag: str, file: str) -> WeightsSource:
    return WeightsSource(
        tag=tag,
        url=f"https://dl.fbaipublicfiles.com/convnext/convnext_{size}_{file}.pth",
        sha256=None,
        layout="convnext",
        licence="MIT",
    )


def _distilled(size: str, sha256: str) -> WeightsSource:
    """DINOv3's; the address answers to those alone who have accepted its licence."""
    name = f"dinov3_convnext_{size}"
    return WeightsSource(
        tag="lvd1689m",
        url=f"https://dl.fbaipublicfiles.com/dinov3/{name}/{name}_pretrain_lvd1689m-{sha256}.pth",
        sha256=sha256,
        layout="convnext_dinov3",
        licence="DINOv3 License",
    )


def _spec(size: str, width: int, depth: int, num_params: int, dinov3: str) -> BackboneSpec:
    return BackboneSpec(
        name=f"convnext_{size}",
        family=ConvNeXt,
        arch=ConvNeXtArch(
            in_channels=3,
            patch_size=4,
            depths=(3, 3, depth, 3),
            widths=(width, 2 * width, 4 * width, 8 * width),
            mlp_ratio=4.0,
            norm_eps=1e-6,
            final_norm=True,
        ),
        num_params=num_params,
        patch_size=32,
        image_size=224,
        sources=(
            _supervised(size, "in1k", "1k_224_ema"),
            _supervised(size, "in22k", "22k_224"),
            _supervised(size, "in22k_in1k", "22k_1k_224"),
            _distilled(size, dinov3),
        ),
        note="supervised on ImageNet-1k or -22k, or distilled from DINOv3",
    )


SPECS = (
    _spec("tiny", 96, 9, 27_820_128, "21b726bb"),
    _spec("small", 96, 27, 49_454_688, "296db49d"),
    _spec("base", 128, 27, 87_566_464, "801f2ba9"),
    _spec("large", 192, 27, 196_230_336, "61fa432d"),
)
