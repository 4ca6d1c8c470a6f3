"""The image tower of CLIP (arXiv 2103.00020) as OpenCLIP trains and runs it (arXiv 2212.07143).

Reference: `VisionTransformer` and `resize_pos_embed` of open_clip 3.3.0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import TransformerArch
from fmi_jax.models.base import (
    ArchConfig,
    Backbone,
    BackboneSpec,
    Execution,
    Tiny,
    WeightsSource,
    cls_and_rest,
    whole_patches,
)
from fmi_jax.nn.drop_path import linear_rates
from fmi_jax.nn.mlp import Mlp, gelu, quick_gelu
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.patch_embed import PatchEmbed
from fmi_jax.nn.positions import resize_positions
from fmi_jax.nn.resize import bicubic_antialias
from fmi_jax.nn.transformer import Block
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenCLIPArch(TransformerArch):
    """The shape of an image tower.

    Attributes:
      embed_width: of the space that images and texts share.
      quick_gelu: whether the MLP has `x * sigmoid(1.702 x)` (OpenAI's weights) in place of the
        exact GELU. The parameters do not show it, and the wrong one spoils the features.
      grid: rows and columns of patches that the position embedding is for.
      norm_tokens: whether `Features.tokens` have passed the final norm, as those of open_clip
        have; the study's have not.
    """

    embed_width: int
    quick_gelu: bool
    grid: tuple[int, int]
    norm_tokens: bool

    @property
    def feature_width(self) -> int:
        """`embed_width`."""
        return self.embed_width

    def sized(self, height: int, width: int) -> "OpenCLIPArch":
        """The arch with positions for images of that size; `UsageError` if smaller than a patch."""
        return dataclasses.replace(self, grid=whole_patches(height, width, self.patch_size))


_TINY = OpenCLIPArch(
    in_channels=3,
    patch_size=5,
    width=33,
    depth=3,
    num_heads=3,
    mlp_width=37,
    embed_width=29,
    quick_gelu=False,
    grid=(7, 7),
    norm_tokens=False,
    norm_eps=1e-6,
)


class OpenCLIP(Backbone):
    """An image tower; `pooled` is the image's embedding, as the study reads it.

    That is the normed [cls] token through `proj`, not scaled to unit length. `cls` is the token
    before `proj`, `tokens` the patch tokens before the final norm (`arch.norm_tokens`).

    Args:
      arch: its shape.
      execution: how it is run.
      rngs: stream `params`.
    """

    cls_first = True
    tiny = (
        Tiny("open_clip", _TINY, 35),
        Tiny(
            "open_clip_quickgelu", dataclasses.replace(_TINY, quick_gelu=True, norm_tokens=True), 35
        ),
    )

    def __init__(self, arch: OpenCLIPArch, execution: Execution, *, rngs: nnx.Rngs):
        self.arch: OpenCLIPArch = arch  # pyright: ignore[reportIncompatibleVariableOverride]
        self.execution = execution
        dtype, width = execution.dtype, arch.width
        normal = jax.nn.initializers.normal(width**-0.5)
        # Of rank 1, as in the reference: weight decay passes it by.
        self.cls_token = nnx.Param(normal(rngs.params(), (width,)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1 + arch.grid[0] * arch.grid[1], width)))
        self.patch_embed = PatchEmbed(
            arch.in_channels, width, arch.patch_size, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.norm_pre = LayerNorm(width, eps=arch.norm_eps)
        activation = quick_gelu if arch.quick_gelu else gelu
        self.blocks = nnx.List(
            Block(
                width,
                arch.num_heads,
                Mlp(width, arch.mlp_width, activation=activation, dtype=dtype, rngs=rngs),
                attention=execution.attention,
                eps=arch.norm_eps,
                layer_scale=None,
                drop_path=rate,
                dtype=dtype,
                rngs=rngs,
            )
            for rate in linear_rates(execution.drop_path, arch.depth)
        )
        self.norm = LayerNorm(width, eps=arch.norm_eps)
        self.proj = nnx.Param(normal(rngs.params(), (width, arch.embed_width)))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid; `UsageError` unless it is that of the positions."""
        grid = whole_patches(height, width, self.arch.patch_size)
        if grid != self.arch.grid:
            rows, cols = (side * self.arch.patch_size for side in self.arch.grid)
            raise UsageError(
                f"image size {height}x{width}: this network has positions for {rows}x{cols};"
                f" build and load it with arch.sized({height}, {width})."
            )
        return grid

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Tokens that enter block 0: [cls], then the patches row by row, normed."""
        self.grid(images.shape[1], images.shape[2])
        patches = self.patch_embed(images)
        b, width, dtype = patches.shape[0], self.arch.width, patches.dtype
        cls = jnp.broadcast_to(self.cls_token[...].astype(dtype), (b, 1, width))
        tokens = jnp.concatenate([cls, patches.reshape(b, -1, width)], axis=1)
        return self.norm_pre(tokens + self.pos_embed[...].astype(dtype)).astype(dtype)

    def readout(self, x: Any, block: int, grid: tuple[int, int]) -> Features:
        """Features of a network that ends here: norm and `proj` follow whichever block is last."""
        del block
        dtype = self.execution.dtype
        cls, tokens = cls_and_rest(x)
        cls = self.norm(cls)
        pooled = jnp.matmul(
            cls.astype(dtype), self.proj[...].astype(dtype), preferred_element_type=jnp.float32
        )
        tokens = self.norm(tokens) if self.arch.norm_tokens else tokens
        return Features(pooled, tokens.reshape(len(cls), *grid, -1), cls)

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Parameters with the position embedding resized to the grid of `target`."""
        assert isinstance(source, OpenCLIPArch)
        assert isinstance(target, OpenCLIPArch)
        table = jnp.asarray(params["pos_embed"])
        resized = resize_positions(table, source.grid, target.grid, bicubic_antialias)
        return {**params, "pos_embed": np.asarray(resized)}


def _arch(
    width: int, depth: int, patch_size: int, embed_width: int, *, quick_gelu: bool
) -> OpenCLIPArch:
    return OpenCLIPArch(
        in_channels=3,
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=width // 64,
        mlp_width=4 * width,
        embed_width=embed_width,
        quick_gelu=quick_gelu,
        grid=(224 // patch_size, 224 // patch_size),
        norm_tokens=False,
        norm_eps=1e-5,
    )


def _laion(tag: str, repository: str) -> WeightsSource:
    return WeightsSource(
        tag=tag,
        url=f"https://huggingface.co/laion/{repository}/resolve/main/open_clip_pytorch_model.bin",
        sha256=None,
        layout="open_clip",
        licence="MIT",
    )


def _openai(repository: str) -> WeightsSource:
    # OpenAI's own file is a TorchScript program; these are the same numbers as plain tensors.
    return WeightsSource(
        tag="openai",
        url=f"https://huggingface.co/openai/{repository}/resolve/main/model.safetensors",
        sha256=None,
        layout="open_clip_hf",
        licence="MIT",
    )


def _spec(
    name: str, arch: OpenCLIPArch, num_params: int, source: WeightsSource, images: str
) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        family=OpenCLIP,
        arch=arch,
        num_params=num_params,
        patch_size=arch.patch_size,
        image_size=224,
        sources=(source,),
        note=f"image tower of CLIP, trained on {images}",
    )


_B16 = _laion("laion2b_s34b_b88k", "CLIP-ViT-B-16-laion2B-s34B-b88K")
_L14 = _laion("laion2b_s32b_b82k", "CLIP-ViT-L-14-laion2B-s32B-b82K")
_LAION = "2 billion captioned images of LAION-5B"
_OPENAI = "400 million captioned images, with QuickGELU"

SPECS = (
    _spec("clip_vitb16", _arch(768, 12, 16, 512, quick_gelu=False), 86_192_640, _B16, _LAION),
    _spec("clip_vitl14", _arch(1024, 24, 14, 768, quick_gelu=False), 303_966_208, _L14, _LAION),
    _spec(
        "clip_vitb16_quickgelu",
        _arch(768, 12, 16, 512, quick_gelu=True),
        86_192_640,
        _openai("clip-vit-base-patch16"),
        _OPENAI,
    ),
    _spec(
        "clip_vitl14_quickgelu",
        _arch(1024, 24, 14, 768, quick_gelu=True),
        303_966_208,
        _openai("clip-vit-large-patch14"),
        _OPENAI,
    ),
)
