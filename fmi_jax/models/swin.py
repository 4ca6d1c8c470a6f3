"""Swin (arXiv 2103.14030): attention in shifted windows, on maps that halve from stage to stage.

A block is a stage. The patch merging that makes a stage's map is part of it, so that what a
stage puts out is on its own grid, as in timm.
"""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import NormedStagedArch, NormedStages
from fmi_jax.models.base import BackboneSpec, Execution, Tiny, WeightsSource
from fmi_jax.nn.linear import linear
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.stage import ConvEmbed, MapMlp, pad_map, stages
from fmi_jax.nn.transformer import Block
from fmi_jax.nn.window_attention import WindowAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinArch(NormedStagedArch):
    """The shape of a Swin.

    Attributes:
      patch_size: pixels per side of the patches that enter the first stage.
      num_heads: heads of each attention, by stage; divides the stage's width.
      windows: side of each stage's windows, in tokens of that stage.
    """

    patch_size: int
    num_heads: tuple[int, ...]
    windows: tuple[int, ...]


class Swin(NormedStages[SwinArch]):
    """A Swin; `tokens` is the normed output of the last stage, `pooled` its mean.

    There is no [cls] token. The features of a network that ends after an earlier stage have no
    norm, as only the last stage was published with one.

    Any image of at least a patch is taken. As published, a network is built for one image
    size, and asserts that the maps of all its stages are multiples of their windows and can be
    halved; there we are the same. Other maps are filled up with zeros, as in transformers and
    in the detection networks of the same authors. Pixels that fill no whole patch on the right
    and below are not seen, as in every reference's patch embedding.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    own_maps = ("received_attention",)
    tiny = (
        Tiny(
            "swin",
            SwinArch(
                in_channels=3,
                patch_size=3,
                width=6,
                depths=(1, 2),
                num_heads=(2, 3),
                windows=(5, 3),
                mlp_ratio=1.5,
                norm_eps=1e-5,
                final_norm=True,
            ),
            37,
        ),
    )

    def __init__(self, arch: SwinArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        dtype = execution.dtype
        self.patch_embed = ConvEmbed(
            arch.in_channels,
            arch.width,
            kernel_size=arch.patch_size,
            stride=arch.patch_size,
            padding=0,
            fill=False,
            eps=arch.norm_eps,
            dtype=dtype,
            rngs=rngs,
        )

        def block(stage: int, i: int, drop_path: float) -> Block:
            width = arch.width * 2**stage
            return Block(
                width,
                attn=WindowAttention(
                    width,
                    arch.num_heads[stage],
                    window=arch.windows[stage],
                    shift=i % 2 == 1,
                    dtype=dtype,
                    rngs=rngs,
                ),
                mlp=MapMlp(width, int(width * arch.mlp_ratio), dtype=dtype, rngs=rngs),
                eps=arch.norm_eps,
                drop_path=drop_path,
            )

        def merging(stage: int) -> PatchMerging:
            width = arch.width * 2 ** (stage - 1)
            return PatchMerging(width, eps=arch.norm_eps, dtype=dtype, rngs=rngs)

        self.blocks = nnx.List(stages(arch.depths, execution.drop_path, merging, block))
        if arch.final_norm:
            self.norm = LayerNorm(arch.feature_width, eps=arch.norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches; `UsageError` if there are none."""
        rows, cols = self.patch_embed.grid(height, width)
        if min(rows, cols) < 1:
            least = self.arch.patch_size
            raise UsageError(
                f"image size {height}x{width}: expected at least one patch of {least}x{least};"
                f" nearest is {max(height, least)}x{max(width, least)}."
            )
        return rows, cols

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The map of normed patches that enters stage 0."""
        return self.patch_embed(images)


class PatchMerging(nnx.Module):
    """Four neighbouring tokens side by side, a norm, and a projection to twice the width.

    Args:
      width: width of the tokens that enter.
      eps: epsilon of the layer norm.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(self, width: int, *, eps: float, dtype: Any, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * width, eps=eps)
        self.reduction = linear(4 * width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b rows cols 2*d"]:
        """Half the map, rounded up."""
        x = pad_map(x, 2)
        b, h, w, d = x.shape
        # The first column of each four comes before the second.
        x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(b, h // 2, w // 2, 4 * d)))


def _spec(size: str, width: int, depth: int, heads: int, num_params: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"swin_{size}",
        family=Swin,
        arch=SwinArch(
            in_channels=3,
            patch_size=4,
            width=width,
            depths=(2, 2, depth, 2),
            num_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
            windows=(7, 7, 7, 7),
            mlp_ratio=4.0,
            norm_eps=1e-5,
            final_norm=True,
        ),
        num_params=num_params,
        patch_size=32,
        image_size=224,
        sources=(
            WeightsSource(
                tag="in1k",
                url="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
                f"swin_{size}_patch4_window7_224.pth",
                sha256=None,
                layout="swin",
                licence="MIT",
            ),
        ),
        note="supervised on ImageNet-1k",
    )


SPECS = (
    _spec("tiny", 96, 6, 3, 27_519_354),
    _spec("small", 96, 18, 3, 48_837_258),
    _spec("base", 128, 18, 4, 86_743_224),
)
