"""FocalNet (arXiv 2203.11926), the classification networks: a block is a stage."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import NormedStagedArch, NormedStages
from fmi_jax.models.base import BackboneSpec, Execution, Tiny, WeightsSource
from fmi_jax.nn.focal_modulation import FocalModulation
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.stage import ConvEmbed, stages
from fmi_jax.nn.transformer import LayerScale, drop_path, identity

_LAYER_SCALE = 1e-4  # initial value in the reference's configs


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocalNetArch(NormedStagedArch):
    """The shape of a FocalNet.

    Attributes:
      patch_size: stride of the stem in pixels, and its kernel without `conv_embed`.
      focal_levels: depth-wise convolutions per residual block, stage by stage.
      focal_windows: side of the first of them, stage by stage; odd.
      conv_embed: overlapping convolutions for stem (7x7, stride 4) and down-sampling (3x3).
      layer_scale: learned factors on the residual branches.
      post_norm: branches are normed where they end, not where they start.
      post_norm_in_modulation: another norm before the last projection of a modulation.
      normalise_modulator: the contexts are averaged, not summed.
    """

    patch_size: int
    focal_levels: tuple[int, ...]
    focal_windows: tuple[int, ...]
    conv_embed: bool
    layer_scale: bool
    post_norm: bool
    post_norm_in_modulation: bool
    normalise_modulator: bool


class FocalNetBlock(nnx.Module):
    """Two residual branches, a focal modulation and an MLP, normed before or after."""

    def __init__(
        self, arch: FocalNetArch, stage: int, drop_path: float, *, dtype: Any, rngs: nnx.Rngs
    ):
        width = arch.width * 2**stage
        self.drop_path = drop_path

        def norm(wanted: bool) -> Any:
            return LayerNorm(width, eps=arch.norm_eps) if wanted else identity

        def scale() -> Any:
            return LayerScale(width, _LAYER_SCALE) if arch.layer_scale else identity

        self.norm1 = norm(not arch.post_norm)
        self.modulation = FocalModulation(
            width,
            levels=arch.focal_levels[stage],
            window=arch.focal_windows[stage],
            normalise=arch.normalise_modulator,
            norm_eps=arch.norm_eps if arch.post_norm_in_modulation else None,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm1_post, self.ls1 = norm(arch.post_norm), scale()
        self.norm2 = norm(not arch.post_norm)
        self.mlp = Mlp(width, int(width * arch.mlp_ratio), dtype=dtype, rngs=rngs)
        self.norm2_post, self.ls2 = norm(arch.post_norm), scale()

    def __call__(
        self, x: Float[Array, "b h w d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w d"]:
        """The block's output, in the type of `x`."""
        y = self.ls1(self.norm1_post(self.modulation(self.norm1(x)))).astype(x.dtype)
        x = x + drop_path(y, self.drop_path, rngs)
        y = self.ls2(self.norm2_post(self.mlp(self.norm2(x)))).astype(x.dtype)
        return x + drop_path(y, self.drop_path, rngs)


_TINY = FocalNetArch(
    in_channels=3,
    patch_size=3,
    width=7,
    depths=(2, 1, 1),
    focal_levels=(2, 1, 1),
    focal_windows=(1, 3, 3),
    mlp_ratio=1.5,
    norm_eps=1e-5,
    conv_embed=False,
    layer_scale=False,
    post_norm=False,
    post_norm_in_modulation=False,
    normalise_modulator=False,
    final_norm=True,
)


class FocalNet(NormedStages[FocalNetArch]):
    """A FocalNet; `tokens` are the normed outputs of its last stage, `pooled` their mean.

    It has no [cls] token. Reference: `classification/focalnet.py` of microsoft/FocalNet.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    own_maps = ("modulator",)
    tiny = (
        Tiny("focalnet", _TINY, 37),
        Tiny(
            "focalnet_post",
            dataclasses.replace(
                _TINY,
                conv_embed=True,
                layer_scale=True,
                post_norm=True,
                post_norm_in_modulation=True,
                normalise_modulator=True,
            ),
            37,
        ),
    )

    def __init__(self, arch: FocalNetArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        shared = {"fill": False, "eps": arch.norm_eps, "dtype": execution.dtype, "rngs": rngs}
        self.stem = ConvEmbed(
            arch.in_channels,
            arch.width,
            kernel_size=7 if arch.conv_embed else arch.patch_size,
            stride=4 if arch.conv_embed else arch.patch_size,
            padding=2 if arch.conv_embed else 0,
            **shared,
        )

        def downsample(stage: int) -> ConvEmbed:
            return ConvEmbed(
                arch.width * 2 ** (stage - 1),
                arch.width * 2**stage,
                kernel_size=3 if arch.conv_embed else 2,
                stride=2,
                padding=1 if arch.conv_embed else 0,
                **shared,
            )

        def block(stage: int, _: int, rate: float) -> FocalNetBlock:
            return FocalNetBlock(arch, stage, rate, dtype=execution.dtype, rngs=rngs)

        self.blocks = nnx.List(stages(arch.depths, execution.drop_path, downsample, block))
        if arch.final_norm:
            self.norm = LayerNorm(arch.feature_width, eps=arch.norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that leave the stem; `UsageError` if nothing reaches the last stage.

        Sides need not be multiples of the total stride: as in the reference, pixels that fill
        no whole patch go unread.
        """
        grid = rest = self.stem.grid(height, width)
        for stage in self.blocks[1:]:
            rest = stage.downsample.grid(*rest)
        if min(rest) < 1:
            least = self.arch.patch_size * 2 ** (self.arch.num_blocks - 1)
            raise UsageError(
                f"image size {height}x{width}: nothing of it would reach the last stage;"
                f" expected at least {least}x{least}."
            )
        return grid

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The normed patches that enter stage 0."""
        return self.stem(images)


def _spec(size: str, width: int, depth: int, num_params: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"focalnet_{size}",
        family=FocalNet,
        arch=FocalNetArch(
            in_channels=3,
            patch_size=4,
            width=width,
            depths=(2, 2, depth, 2),
            focal_levels=(3, 3, 3, 3),
            focal_windows=(3, 3, 3, 3),
            mlp_ratio=4.0,
            conv_embed=False,
            layer_scale=False,
            post_norm=False,
            post_norm_in_modulation=False,
            normalise_modulator=False,
            final_norm=True,
            norm_eps=1e-5,
        ),
        num_params=num_params,
        patch_size=32,
        image_size=224,
        sources=(
            WeightsSource(
                tag="in1k",
                url="https://projects4jw.blob.core.windows.net/focalnet/release/classification/"
                f"focalnet_{size}_lrf.pth",
                sha256=None,
                layout="focalnet",
                licence="MIT",
            ),
        ),
        note="supervised on ImageNet-1k, large receptive field (three focal levels)",
    )


SPECS = (
    _spec("tiny", 96, 6, 27_878_928),
    _spec("small", 96, 18, 49_573_440),
    _spec("base", 128, 18, 87_724_768),
)
