"""The image encoder of Segment Anything (arXiv 2304.02643): a ViTDet (arXiv 2203.16527).

Most blocks attend within windows, a few over the whole map; all have decomposed relative
positions. The study resizes the position tables when it loads the weights, and so do we.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import unknown_name
from fmi_jax.models.base import (
    ArchConfig,
    BackboneSpec,
    Execution,
    Tiny,
    WeightsSource,
    patch_grid,
)
from fmi_jax.models.vit import OneGrid, OneGridArch
from fmi_jax.nn.conv import PatchEmbed, convolution
from fmi_jax.nn.linear import trunc_normal
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.relative_position import RelativePositionAttention
from fmi_jax.nn.resize import bicubic_antialias, linear, nearest, resize
from fmi_jax.nn.transformer import Block, linear_rates
from fmi_jax.types import Features

_REL_POS_RESIZE = {"linear": linear, "nearest": nearest}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAMArch(OneGridArch):
    """The shape of an image encoder.

    Attributes:
      window_size: side of the windows, in tokens.
      global_blocks: indices of the blocks that attend over the whole map.
      rel_pos_resize: interpolation of the relative positions of the global blocks to another
        grid when weights are loaded: "linear", as the reference does, or "nearest", as the
        study did by leaving out an argument.
      neck_width: channels of the neck, which `features` does not use; None for no neck.
    """

    window_size: int
    global_blocks: tuple[int, ...]
    rel_pos_resize: str
    neck_width: int | None

    def __post_init__(self) -> None:
        if self.rel_pos_resize not in _REL_POS_RESIZE:
            raise unknown_name("rel_pos_resize", self.rel_pos_resize, _REL_POS_RESIZE)

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after `block`: without the neck, also after the last one."""
        kept = tuple(i for i in self.global_blocks if i <= block)
        return dataclasses.replace(super().truncated(block), global_blocks=kept, neck_width=None)

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image; `UsageError` unless both sides fit."""
        return patch_grid(height, width, self.patch_size)


class SAM(OneGrid[SAMArch]):
    """An image encoder; `pooled` is the mean over the map after the last block, `tokens` that
    map itself. There is no final norm.

    `neck(tokens)` is what the mask decoder reads; no feature depends on it, and a truncated
    network has none.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    own_maps = ("received_attention",)
    tiny = (
        Tiny(
            "sam",
            SAMArch(
                in_channels=3,
                patch_size=5,
                width=33,
                depth=3,
                num_heads=3,
                mlp_width=37,
                window_size=3,
                global_blocks=(1,),
                grid=(7, 7),
                rel_pos_resize="linear",
                neck_width=13,
                norm_eps=1e-6,
            ),
            35,
        ),
    )

    def __init__(self, arch: SAMArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        dtype = execution.dtype
        self.pos_embed = nnx.Param(trunc_normal(rngs.params(), (1, *arch.grid, arch.width)))
        self.patch_embed = PatchEmbed(
            arch.in_channels, arch.width, arch.patch_size, dtype=dtype, rngs=rngs
        )
        self.blocks = nnx.List(
            Block(
                arch.width,
                attn=RelativePositionAttention(
                    arch.width,
                    arch.num_heads,
                    grid=arch.grid,
                    window=None if i in arch.global_blocks else arch.window_size,
                    kernel=execution.attention,
                    dtype=dtype,
                    rngs=rngs,
                ),
                mlp=Mlp(arch.width, arch.mlp_width, dtype=dtype, rngs=rngs),
                eps=arch.norm_eps,
                drop_path=rate,
            )
            for i, rate in enumerate(linear_rates(execution.drop_path, arch.depth))
        )
        if arch.neck_width is not None:
            self.neck = Neck(arch.width, arch.neck_width, eps=arch.norm_eps, dtype=dtype, rngs=rngs)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The map of tokens that enters block 0."""
        patches = self.patch_embed(images)
        return patches + self.pos_embed[...].astype(patches.dtype)

    def readout(
        self, x: Float[Array, "b rows cols d"], block: int, grid: tuple[int, int]
    ) -> Features:
        """Features of a network that ends here."""
        return Features(x.mean(axis=(1, 2), dtype=jnp.float32), x, None)

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Resize the position tables to the grid of `target`; drop the neck if it has none.

        Reference: `filter_interpolate_weights` of the study's `utils/transformers/sam.py` for
        the absolute positions, `get_rel_pos` of segment_anything for the relative ones.
        """
        assert isinstance(source, SAMArch)
        assert isinstance(target, SAMArch)
        with_neck = target.neck_width is not None
        params = {n: value for n, value in params.items() if with_neck or not n.startswith("neck.")}
        if source.grid == target.grid:
            return params
        sides = tuple(zip(source.grid, target.grid, strict=True))
        rows, cols = (bicubic_antialias(old, new, step=old / new) for old, new in sides)
        table = resize(jnp.asarray(params["pos_embed"][0]), rows, cols)
        params["pos_embed"] = np.asarray(table)[None]
        kernel = _REL_POS_RESIZE[target.rel_pos_resize]
        for i in target.global_blocks:
            for axis, (old, new) in zip("hw", sides, strict=True):
                name = f"blocks.{i}.attn.rel_pos_{axis}"
                params[name] = (kernel(2 * old - 1, 2 * new - 1) @ params[name]).astype(np.float32)
        return params


class Neck(nnx.Module):
    """Two convolutions without bias, 1x1 and 3x3, each with a layer norm over the channels.

    Args:
      width: width of the tokens.
      neck_width: channels of the output.
      eps: epsilon of the layer norms.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(self, width: int, neck_width: int, *, eps: float, dtype: Any, rngs: nnx.Rngs):
        def conv(inputs: int, side: int) -> nnx.Conv:
            return nnx.Conv(
                inputs,
                neck_width,
                kernel_size=(side, side),
                padding="SAME",
                use_bias=False,
                dtype=dtype,
                param_dtype=jnp.float32,
                kernel_init=trunc_normal,
                conv_general_dilated=convolution,
                rngs=rngs,
            )

        self.conv1 = conv(width, 1)
        self.norm1 = LayerNorm(neck_width, eps=eps)
        self.conv2 = conv(neck_width, 3)
        self.norm2 = LayerNorm(neck_width, eps=eps)

    def __call__(self, tokens: Float[Array, "b h w d"]) -> Float[Array, "b h w o"]:
        """The image embedding that Segment Anything's mask decoder reads."""
        return self.norm2(self.conv2(self.norm1(self.conv1(tokens))))


def _spec(
    size: str, digest: str, width: int, depth: int, num_heads: int, num_params: int
) -> BackboneSpec:
    name = f"sam_vit_{size}"
    return BackboneSpec(
        name=name,
        family=SAM,
        arch=SAMArch(
            in_channels=3,
            patch_size=16,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=4 * width,
            window_size=14,
            global_blocks=tuple(depth // 4 * i - 1 for i in range(1, 5)),
            grid=(64, 64),
            rel_pos_resize="linear",
            neck_width=256,
            norm_eps=1e-6,
        ),
        num_params=num_params,
        patch_size=16,
        image_size=1024,
        sources=(
            WeightsSource(
                tag="sa1b",
                url=f"https://dl.fbaipublicfiles.com/segment_anything/{name}_{digest}.pth",
                sha256=None,  # the digits in the file's name are of its MD5
                layout="sam",
                licence="Apache-2.0",
            ),
        ),
        note="trained to segment anything in SA-1B; with its neck",
    )


SPECS = (
    _spec("b", "01ec64", 768, 12, 12, 89_670_912),
    _spec("l", "0b3195", 1024, 24, 16, 308_278_272),
    _spec("h", "4b8939", 1280, 32, 16, 637_026_048),
)
