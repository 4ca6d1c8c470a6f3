"""The image tower of CLIP (arXiv 2103.00020) as OpenCLIP trains and runs it (arXiv 2212.07143).

Reference: `VisionTransformer` and `resize_pos_embed` of open_clip 3.3.0.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import (
    BackboneSpec,
    Execution,
    Tiny,
    WeightsSource,
    cls_and_rest,
)
from fmi_jax.models.vit import OneGrid, OneGridArch, vit_blocks
from fmi_jax.nn.conv import PatchEmbed
from fmi_jax.nn.mlp import Mlp, gelu, quick_gelu
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.resize import bicubic_antialias
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenCLIPArch(OneGridArch):
    """The shape of an image tower.

    Attributes:
      embed_width: width of the space that images and texts share.
      quick_gelu: True if the MLP has `x * sigmoid(1.702 x)` (OpenAI's weights) in place of the
        exact GELU. The parameters do not show it, and the wrong one spoils the features.
      norm_tokens: True if `Features.tokens` have passed the final norm, as those of open_clip
        have; the study's have not.
    """

    embed_width: int
    quick_gelu: bool
    norm_tokens: bool

    @property
    def feature_width(self) -> int:
        """`embed_width`."""
        return self.embed_width


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


class OpenCLIP(OneGrid[OpenCLIPArch]):
    """An image tower; `pooled` is the image's embedding, as the study reads it.

    That is the normed [cls] token through `proj`, not scaled to unit length. `cls` is the token
    before `proj`, `tokens` the patch tokens before the final norm (`arch.norm_tokens`).

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    cls_first = True
    own_maps = ("attention", "rollout")
    kernel = staticmethod(bicubic_antialias)
    tiny = (
        Tiny("open_clip", _TINY, 35),
        Tiny(
            "open_clip_quickgelu", dataclasses.replace(_TINY, quick_gelu=True, norm_tokens=True), 35
        ),
    )

    def __init__(self, arch: OpenCLIPArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        dtype, width = execution.dtype, arch.width
        normal = jax.nn.initializers.normal(width**-0.5)
        # Of rank 1, as in the reference: weight decay passes it by.
        self.cls_token = nnx.Param(normal(rngs.params(), (width,)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1 + arch.grid[0] * arch.grid[1], width)))
        self.patch_embed = PatchEmbed(
            arch.in_channels, width, arch.patch_size, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.norm_pre = LayerNorm(width, eps=arch.norm_eps)
        mlp = functools.partial(Mlp, activation=quick_gelu if arch.quick_gelu else gelu)
        self.blocks = nnx.List(vit_blocks(arch, execution, mlp=mlp, rngs=rngs))
        self.norm = LayerNorm(width, eps=arch.norm_eps)
        self.proj = nnx.Param(normal(rngs.params(), (width, arch.embed_width)))

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Tokens that enter block 0: [cls], then the patches row by row, normed."""
        tokens = super().embed(images)
        return self.norm_pre(tokens).astype(tokens.dtype)

    def readout(self, x: Any, block: int, grid: tuple[int, int]) -> Features:
        """Features of a network that ends here: norm and `proj` follow whichever block is last."""
        dtype = self.execution.dtype
        cls, tokens = cls_and_rest(x)
        cls = self.norm(cls)
        pooled = jnp.matmul(
            cls.astype(dtype), self.proj[...].astype(dtype), preferred_element_type=jnp.float32
        )
        tokens = self.norm(tokens) if self.arch.norm_tokens else tokens
        return Features(pooled, tokens.reshape(len(cls), *grid, -1), cls)


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
