"""DINOv2 (arXiv 2304.07193), without and with register tokens (arXiv 2309.16588)."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import (
    Backbone,
    BackboneSpec,
    Execution,
    Tiny,
    WeightsSource,
    cls_and_rest,
    patch_grid,
)
from fmi_jax.models.vit import TransformerArch, as_sequence, vit_blocks
from fmi_jax.nn.conv import PatchEmbed
from fmi_jax.nn.linear import trunc_normal
from fmi_jax.nn.mlp import Mlp, SwiGLU
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.resize import bicubic, bicubic_antialias, resize_positions
from fmi_jax.types import Features

_LAYER_SCALE = 1e-5  # initial value in the reference's pre-training configs


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOv2Arch(TransformerArch):
    """The shape of a DINOv2.

    Attributes:
      swiglu: gated MLP (ViT-g) in place of the plain one.
      mlp_width: hidden width of the MLP; for SwiGLU that of each half.
      num_registers: register tokens between [cls] and the patches.
      grid_size: side of the patch grid that the position embedding was trained on.
      pos_antialias: True if the resize of the position embedding is antialiased.
      pos_offset: patches added to the new grid's side when the resize step is computed; 0.1 in
        the models without registers (the reference's guard against rounding, which it kept
        because the published features depend on it).
    """

    swiglu: bool
    num_registers: int
    grid_size: int
    pos_antialias: bool
    pos_offset: float


_TINY = DINOv2Arch(
    in_channels=3,
    patch_size=5,
    width=33,
    depth=3,
    num_heads=3,
    mlp_width=37,
    swiglu=False,
    num_registers=0,
    grid_size=4,
    pos_antialias=False,
    pos_offset=0.1,
    norm_eps=1e-6,
)


class DINOv2(Backbone[DINOv2Arch]):
    """A DINOv2; `pooled` and `cls` are its normed [cls] token.

    `tokens` are the patch tokens before the final norm: what the study's stacked classifier
    reads (in its code `x_prenorm[:, 1:]`), here without the registers.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    cls_first = True
    own_maps = ("attention", "rollout")
    tiny = (
        Tiny("dinov2", _TINY, 35),
        Tiny(
            "dinov2_reg",
            dataclasses.replace(
                _TINY, swiglu=True, num_registers=2, pos_antialias=True, pos_offset=0.0
            ),
            35,
        ),
    )

    def __init__(self, arch: DINOv2Arch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        self.cls_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, arch.width)))
        self.pos_embed = nnx.Param(
            trunc_normal(rngs.params(), (1, 1 + arch.grid_size**2, arch.width))
        )
        if arch.num_registers:
            self.register_tokens = nnx.Param(
                trunc_normal(rngs.params(), (1, arch.num_registers, arch.width))
            )
        self.patch_embed = PatchEmbed(
            arch.in_channels, arch.width, arch.patch_size, dtype=execution.dtype, rngs=rngs
        )
        self.blocks = nnx.List(
            vit_blocks(
                arch,
                execution,
                mlp=SwiGLU if arch.swiglu else Mlp,
                layer_scale=_LAYER_SCALE,
                rngs=rngs,
            )
        )
        self.norm = LayerNorm(arch.width, eps=arch.norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid; `UsageError` unless both sides fit."""
        return patch_grid(height, width, self.arch.patch_size)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Tokens that enter block 0: [cls], the registers, the patches row by row."""
        grid = self.grid(images.shape[1], images.shape[2])
        patches = as_sequence(self.patch_embed(images))
        positions = self.positions(*grid).astype(patches.dtype)
        cls = self.cls_token[...].astype(patches.dtype) + positions[:, :1]
        # Registers have no position.
        registers = [self.register_tokens[...]] if self.arch.num_registers else []
        return as_sequence(patches + positions[:, 1:], cls, *registers)

    def positions(self, rows: int, cols: int) -> Float[Array, "1 n d"]:
        """The position embedding for `rows` x `cols` patches; that of [cls] is never resized.

        Reference: `interpolate_pos_encoding` of `dinov2/models/vision_transformer.py`.
        """
        old = (self.arch.grid_size, self.arch.grid_size)
        kernel = bicubic_antialias if self.arch.pos_antialias else bicubic
        return resize_positions(
            self.pos_embed[...], old, (rows, cols), kernel, offset=self.arch.pos_offset
        )

    def readout(self, x: Any, block: int, grid: tuple[int, int]) -> Features:
        """Features of a network that ends here: the final norm follows whichever block is last."""
        cls, rest = cls_and_rest(x)
        cls, tokens = self.norm(cls), rest[:, self.arch.num_registers :]
        return Features(cls, tokens.reshape(len(cls), *grid, -1), cls)


def _spec(size: str, width: int, depth: int, num_registers: int, num_params: int) -> BackboneSpec:
    name = f"dinov2_vit{size}14"
    file = f"{name}_reg{num_registers}" if num_registers else name
    return BackboneSpec(
        name=f"{name}_reg" if num_registers else name,
        family=DINOv2,
        arch=DINOv2Arch(
            in_channels=3,
            patch_size=14,
            width=width,
            depth=depth,
            num_heads=width // 64,
            swiglu=size == "g",
            # SwiGLU keeps the parameter count of a plain MLP, rounded up to a multiple of 8.
            mlp_width=(int(4 * width * 2 / 3) + 7) // 8 * 8 if size == "g" else 4 * width,
            num_registers=num_registers,
            grid_size=37,
            pos_antialias=num_registers > 0,
            pos_offset=0.0 if num_registers else 0.1,
            norm_eps=1e-6,
        ),
        num_params=num_params,
        patch_size=14,
        image_size=518,
        sources=(
            WeightsSource(
                tag="lvd142m",
                url=f"https://dl.fbaipublicfiles.com/dinov2/{name}/{file}_pretrain.pth",
                sha256=None,
                layout="dinov2",
                licence="Apache-2.0",
            ),
        ),
        note=f"self-supervised on LVD-142M{', with 4 registers' if num_registers else ''}",
    )


SPECS = (
    _spec("s", 384, 12, 0, 22_056_192),
    _spec("b", 768, 12, 0, 86_579_712),
    _spec("l", 1024, 24, 0, 304_367_616),
    _spec("g", 1536, 40, 0, 1_136_479_232),
    _spec("s", 384, 12, 4, 22_057_728),
    _spec("b", 768, 12, 4, 86_582_784),
    _spec("l", 1024, 24, 4, 304_371_712),
    _spec("g", 1536, 40, 4, 1_136_485_376),
)
