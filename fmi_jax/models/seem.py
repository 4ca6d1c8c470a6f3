"""The image backbone of SEEM (arXiv 2304.06718): a FocalNet with depth-wise residual
convolutions, normed after its branches. A block is a stage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.arch import StagedArch
from fmi_jax.models.base import ArchConfig, Backbone, BackboneSpec, Execution, Tiny, WeightsSource
from fmi_jax.nn.conv import DepthwiseConv
from fmi_jax.nn.focal_modulation import FocalModulation
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.stage import ConvEmbed, stages
from fmi_jax.nn.transformer import LayerScale, drop_path
from fmi_jax.types import Features

_LAYER_SCALE = 1e-4  # initial value in the reference
_STEM_STRIDE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SEEMArch(StagedArch):
    """The shape of a SEEM backbone.

    Attributes:
      focal_levels: depth-wise convolutions per modulation, stage by stage.
      focal_windows: side of the first of them, stage by stage; odd.
      post_norm_in_modulation: another norm before the last projection of a modulation.
      normalise_modulator: the contexts are averaged, not summed.
    """

    focal_levels: tuple[int, ...]
    focal_windows: tuple[int, ...]
    post_norm_in_modulation: bool
    normalise_modulator: bool
    bare_stem: ClassVar[bool] = False

    def with_study_stem(self) -> "SEEMArch | None":
        """The arch with a bare stem, for other than three channels."""
        return None if self.in_channels == 3 else BareStemArch(**vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareStemArch(SEEMArch):
    """The shape of a SEEM backbone whose stem has neither padding nor norm.

    The study's code rebuilds the stem so for images of one channel (docs/protocols.md, B4).
    """

    bare_stem: ClassVar[bool] = True


class SEEMBlock(nnx.Module):
    """A focal modulation and an MLP, each behind a residual 3x3 depth-wise convolution.

    `x + dw1(x)`, then `norm1(x + ls1(modulation(x)))`; the same with `dw2`, `mlp`, `ls2` and
    `norm2`. The sum is normed, unlike in the post-norm FocalNets, which norm the branch.
    """

    def __init__(self, arch: SEEMArch, stage: int, drop_path: float, *, dtype: Any, rngs: nnx.Rngs):
        width = arch.width * 2**stage
        self.drop_path = drop_path
        self.dw1 = DepthwiseConv(width, 3, use_bias=True, dtype=dtype, rngs=rngs)
        self.modulation = FocalModulation(
            width,
            levels=arch.focal_levels[stage],
            window=arch.focal_windows[stage],
            normalise=arch.normalise_modulator,
            norm_eps=arch.norm_eps if arch.post_norm_in_modulation else None,
            dtype=dtype,
            rngs=rngs,
        )
        self.ls1 = LayerScale(width, _LAYER_SCALE)
        self.norm1 = LayerNorm(width, eps=arch.norm_eps)
        self.dw2 = DepthwiseConv(width, 3, use_bias=True, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, int(width * arch.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls2 = LayerScale(width, _LAYER_SCALE)
        self.norm2 = LayerNorm(width, eps=arch.norm_eps)

    def __call__(
        self, x: Float[Array, "b h w d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w d"]:
        """The block's output, in the type of `x`."""
        dtype = x.dtype
        x = x + self.dw1(x)
        x = x + drop_path(self.ls1(self.modulation(x)), self.drop_path, rngs)
        x = self.norm1(x).astype(dtype)
        x = x + self.dw2(x)
        x = x + drop_path(self.ls2(self.mlp(x)), self.drop_path, rngs)
        return self.norm2(x).astype(dtype)


class SEEM(Backbone[SEEMArch]):
    """The backbone of SEEM; `tokens` are the outputs of its last stage under that stage's norm,
    `pooled` their mean. It has no [cls] token.

    An image of any size: sides are filled up with zeros to the strides. With other than three
    channels the stem keeps its padding and its norm, unless it is bare (`BareStemArch`).

    Reference: `utils/transformers/focal_dw.py` of the study, from the SEEM repository.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    own_maps = ("modulator",)
    tiny = (
        Tiny(
            "seem",
            SEEMArch(
                in_channels=3,
                width=7,
                depths=(2, 1, 1),
                focal_levels=(2, 1, 1),
                focal_windows=(1, 3, 3),
                mlp_ratio=1.5,
                norm_eps=1e-5,
                post_norm_in_modulation=False,
                normalise_modulator=True,
            ),
            37,
        ),
    )

    def __init__(self, arch: SEEMArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        dtype, widths = execution.dtype, [arch.width * 2**i for i in range(arch.num_blocks)]

        def embed(
            in_width: int, width: int, kernel_size: int, stride: int, bare: bool = False
        ) -> ConvEmbed:
            return ConvEmbed(
                in_width,
                width,
                kernel_size=kernel_size,
                stride=stride,
                padding=0 if bare else kernel_size // 2,
                fill=True,
                eps=None if bare else arch.norm_eps,
                dtype=dtype,
                rngs=rngs,
            )

        self.stem = embed(arch.in_channels, arch.width, 7, _STEM_STRIDE, arch.bare_stem)
        self.blocks = nnx.List(
            stages(
                arch.depths,
                execution.drop_path,
                lambda stage: embed(widths[stage - 1], widths[stage], 3, 2),
                lambda stage, _, rate: SEEMBlock(arch, stage, rate, dtype=dtype, rngs=rngs),
            )
        )
        self.norms = nnx.List(LayerNorm(width, eps=arch.norm_eps) for width in widths)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that leave the stem."""
        return self.stem.grid(height, width)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The normed patches that enter stage 0."""
        return self.stem(images)

    def readout(
        self, x: Float[Array, "b rows cols d"], block: int, grid: tuple[int, int]
    ) -> Features:
        """Features of a network that ends here: every stage has a norm of its own for it."""
        tokens = self.tokens_of(x, block, grid)
        return Features(tokens.mean((1, 2)), tokens, None)

    def tokens_of(
        self, x: Float[Array, "b rows cols d"], block: int, grid: tuple[int, int]
    ) -> Float[Array, "b rows cols d"]:
        """Tokens under the norm of their stage, which is no norm of the network's end."""
        return self.norms[block](x)

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Leave out the norm of a stem that is to be bare."""
        bare = isinstance(target, BareStemArch)
        return {k: v for k, v in params.items() if not (bare and k.startswith("stem.norm."))}


SPECS = (
    BackboneSpec(
        name="seem_focal_tiny",
        family=SEEM,
        arch=SEEMArch(
            in_channels=3,
            width=96,
            depths=(2, 2, 6, 2),
            focal_levels=(3, 3, 3, 3),
            focal_windows=(3, 3, 3, 3),
            mlp_ratio=4.0,
            post_norm_in_modulation=False,
            normalise_modulator=True,
            norm_eps=1e-5,
        ),
        num_params=29_922_288,
        patch_size=32,
        image_size=1024,
        sources=(
            WeightsSource(
                tag="seem_v0",
                url="https://huggingface.co/xdecoder/SEEM/resolve/main/seem_focalt_v0.pt",
                sha256=None,
                layout="seem",
                licence="Apache-2.0",
            ),
        ),
        note="FocalNet-T of SEEM, trained to segment COCO images on prompts",
    ),
)
