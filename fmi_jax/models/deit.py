"""DeiT (arXiv 2012.12877), plain and distilled, and DINO (arXiv 2104.14294).

Plain DeiT and DINO are one network with different weights. The study runs them through the
vision transformer of the DINO repository, and so do we: position embeddings are resized in the
forward pass. A distilled DeiT has one more token, which was trained to predict what a teacher
predicts (section 3 of the paper).
"""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
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
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.resize import bicubic, resize_positions
from fmi_jax.nn.transformer import identity
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeiTArch(TransformerArch):
    """The shape of a DeiT.

    Attributes:
      distilled: True if a distillation token stands between [cls] and the patches.
      grid_size: side of the patch grid that the position embedding was trained on.
    """

    distilled: bool
    grid_size: int

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return 2 if self.distilled else 1

    def on_tokens(self) -> "DeiTArch":
        """The arch of a `TokenDeiT`: a patch is one token of this width."""
        return dataclasses.replace(self, in_channels=self.width, patch_size=1)


_TINY = DeiTArch(
    in_channels=3,
    patch_size=5,
    width=33,
    depth=3,
    num_heads=3,
    mlp_width=37,
    grid_size=4,
    distilled=False,
    norm_eps=1e-6,
)


class DeiT(Backbone[DeiTArch]):
    """A DeiT; `pooled` and `cls` are its normed [cls] token, `tokens` its normed patch tokens.

    So also where it is distilled. As published, that network has two heads, one on [cls] and one
    on the distillation token, and averages their logits; a single head reads [cls], as in
    transformers' `DeiTForImageClassification`.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    cls_first = True
    own_maps = ("attention", "rollout")
    tiny = (
        Tiny("deit", _TINY, 35),
        Tiny("deit_distilled", dataclasses.replace(_TINY, distilled=True), 35),
    )

    def __init__(self, arch: DeiTArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        self.cls_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, arch.width)))
        if arch.distilled:
            self.dist_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, arch.width)))
        self.pos_embed = nnx.Param(
            trunc_normal(rngs.params(), (1, arch.num_prefix_tokens + arch.grid_size**2, arch.width))
        )
        self.patch_embed = PatchEmbed(
            arch.in_channels, arch.width, arch.patch_size, dtype=execution.dtype, rngs=rngs
        )
        self.blocks = nnx.List(vit_blocks(arch, execution, rngs=rngs))
        self.norm = LayerNorm(arch.width, eps=arch.norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid; `UsageError` unless the image is square and fits."""
        if height != width:
            side = patch_grid(min(height, width), min(height, width), self.arch.patch_size)[0]
            raise UsageError(
                f"image size {height}x{width}: this family takes square images only, as its"
                f" position embedding was published for them; nearest is"
                f" {side * self.arch.patch_size}x{side * self.arch.patch_size}."
            )
        return patch_grid(height, width, self.arch.patch_size)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Tokens that enter block 0: [cls], the distillation token, the patches row by row."""
        side, _ = self.grid(images.shape[1], images.shape[2])
        prefix = [self.cls_token[...]] + ([self.dist_token[...]] if self.arch.distilled else [])
        tokens = as_sequence(self.patch_embed(images), *prefix)
        return tokens + self.positions(side).astype(tokens.dtype)

    def positions(self, side: int) -> Float[Array, "1 n d"]:
        """The position embedding for `side` x `side` patches.

        Those of [cls] and the distillation token are never resized.

        Reference: `interpolate_pos_encoding` of the study's `utils/transformers/deit.py`. Its
        output size is a rounded-down product that misses for some sizes, where it fails.
        """
        old, prefix = self.arch.grid_size, self.arch.num_prefix_tokens
        return resize_positions(
            self.pos_embed[...], (old, old), (side, side), bicubic, prefix=prefix
        )

    def readout(self, x: Any, block: int, grid: tuple[int, int]) -> Features:
        """Features of a network that ends here: the final norm follows whichever block is last."""
        cls, rest = cls_and_rest(x)
        cls, tokens = self.norm(cls), self.norm(rest[:, self.arch.num_prefix_tokens - 1 :])
        return Features(cls, tokens.reshape(len(cls), *grid, -1), cls)


class TokenDeiT(DeiT):
    """A DeiT whose input is a grid of tokens of its own width instead of an image.

    The second half of the study's stacked classifier (paper, Figure 1): its patch embedding is
    the identity and has no parameters; [cls] token, position embedding (resized to the grid),
    blocks and norm are those of the DeiT. Where `Backbone` says images it takes tokens
    `[b, h, w, d]`.

    Args:
      arch: arch that `DeiTArch.on_tokens` gives.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    def __init__(self, arch: DeiTArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution, rngs=rngs)
        del self.patch_embed
        self.patch_embed = identity

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The grid itself; `UsageError` unless it is square."""
        if height != width:
            raise UsageError(
                f"token grid {height}x{width}: a DeiT takes square grids only, as its position"
                " embedding was published for them; use square images."
            )
        return height, width


def _arch(width: int, patch_size: int, *, distilled: bool = False) -> DeiTArch:
    return DeiTArch(
        in_channels=3,
        patch_size=patch_size,
        width=width,
        depth=12,
        num_heads=width // 64,
        mlp_width=4 * width,
        distilled=distilled,
        grid_size=224 // patch_size,
        norm_eps=1e-6,
    )


def _source(tag: str, path: str, sha256: str | None) -> WeightsSource:
    return WeightsSource(
        tag=tag,
        url=f"https://dl.fbaipublicfiles.com/{path}.pth",
        sha256=sha256,
        layout="deit",
        licence="Apache-2.0",
    )


def _deit(
    name: str, width: int, num_params: int, sha256: str, *, distilled: bool = False
) -> BackboneSpec:
    teacher = ", distilled from a RegNetY-16GF" if distilled else ""
    return BackboneSpec(
        name=name,
        family=DeiT,
        arch=_arch(width, 16, distilled=distilled),
        num_params=num_params,
        patch_size=16,
        image_size=224,
        sources=(_source("in1k", f"deit/{name}_patch16_224-{sha256}", sha256),),
        note=f"supervised on ImageNet-1k{teacher}",
    )


def _dino(name: str, width: int, patch_size: int, num_params: int, stem: str) -> BackboneSpec:
    file = f"dino_{stem}{patch_size}_pretrain"
    return BackboneSpec(
        name=name,
        family=DeiT,
        arch=_arch(width, patch_size),
        num_params=num_params,
        patch_size=patch_size,
        image_size=224,
        sources=(_source("dino_in1k", f"dino/{file}/{file}", None),),
        note="self-supervised on ImageNet-1k (DINO)",
    )


SPECS = (
    _deit("deit_tiny", 192, 5_524_416, "a1311bcf"),
    _deit("deit_small", 384, 21_665_664, "cd65a155"),
    _deit("deit_base", 768, 85_798_656, "b5f2ef4d"),
    _deit("deit_tiny_distilled", 192, 5_524_800, "b40b3cf7", distilled=True),
    _deit("deit_small_distilled", 384, 21_666_432, "649709d9", distilled=True),
    _deit("deit_base_distilled", 768, 85_800_192, "df68dfff", distilled=True),
    _dino("dino_vits16", 384, 16, 21_665_664, "deitsmall"),
    _dino("dino_vits8", 384, 8, 21_670_272, "deitsmall"),
    _dino("dino_vitb16", 768, 16, 85_798_656, "vitbase"),
    _dino("dino_vitb8", 768, 8, 85_807_872, "vitbase"),
    BackboneSpec(
        name="deit_nano",
        family=DeiT,
        arch=DeiTArch(
            in_channels=3,
            patch_size=8,
            width=64,
            depth=3,
            num_heads=2,
            mlp_width=128,
            distilled=False,
            grid_size=12,
            norm_eps=1e-6,
        ),
        num_params=122_240,
        patch_size=8,
        image_size=96,
        sources=(),
        note="small enough to train on a laptop's CPU; no published weights",
    ),
)
