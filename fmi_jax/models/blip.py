"""The image encoder of BLIP (arXiv 2201.12086).

Reference: `VisionTransformer` and `interpolate_pos_embed` of `models/vit.py` in salesforce/BLIP.
"""

import dataclasses
from typing import Any

from flax import nnx

from fmi_jax.errors import unknown_name
from fmi_jax.models.base import (
    BackboneSpec,
    Execution,
    Tiny,
    WeightsSource,
    cls_and_rest,
)
from fmi_jax.models.vit import OneGrid, OneGridArch, vit_blocks
from fmi_jax.nn.conv import PatchEmbed
from fmi_jax.nn.linear import trunc_normal
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.resize import bicubic
from fmi_jax.types import Features

READOUTS = ("cls", "first_patch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BLIPArch(OneGridArch):
    """The shape of an image encoder.

    Attributes:
      readout: which token `Features.pooled` is: "cls", or "first_patch" (the study's code reads
        `tokens[:, 1]`, which is the patch in the upper left corner).
    """

    readout: str

    def __post_init__(self):
        if self.readout not in READOUTS:
            raise unknown_name("readout", self.readout, READOUTS)


_TINY = BLIPArch(
    in_channels=3,
    patch_size=5,
    width=33,
    depth=3,
    num_heads=3,
    mlp_width=37,
    grid=(7, 7),
    readout="cls",
    norm_eps=1e-6,
)


class BLIP(OneGrid[BLIPArch]):
    """An image encoder; `pooled` is its normed [cls] token (`arch.readout`), as is `cls`.

    `tokens` are its normed patch tokens.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    cls_first = True
    own_maps = ("attention", "rollout")
    kernel = staticmethod(bicubic)
    tiny = (
        Tiny("blip", _TINY, 35),
        Tiny("blip_first_patch", dataclasses.replace(_TINY, readout="first_patch"), 35),
    )

    def __init__(self, arch: BLIPArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        self.cls_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, arch.width)))
        self.pos_embed = nnx.Param(
            trunc_normal(rngs.params(), (1, 1 + arch.grid[0] * arch.grid[1], arch.width))
        )
        self.patch_embed = PatchEmbed(
            arch.in_channels, arch.width, arch.patch_size, dtype=execution.dtype, rngs=rngs
        )
        self.blocks = nnx.List(vit_blocks(arch, execution, rngs=rngs))
        self.norm = LayerNorm(arch.width, eps=arch.norm_eps)

    def readout(self, x: Any, block: int, grid: tuple[int, int]) -> Features:
        """Features of a network that ends here: the final norm follows whichever block is last."""
        cls, patches = (self.norm(tokens) for tokens in cls_and_rest(x))
        pooled = cls if self.arch.readout == "cls" else patches[:, 0]
        return Features(pooled, patches.reshape(len(cls), *grid, -1), cls)


def _spec(
    name: str,
    width: int,
    depth: int,
    num_params: int,
    image_size: int,
    note: str,
    sources: tuple[WeightsSource, ...],
) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        family=BLIP,
        arch=BLIPArch(
            in_channels=3,
            patch_size=16,
            width=width,
            depth=depth,
            num_heads=width // 64,
            mlp_width=4 * width,
            grid=(image_size // 16, image_size // 16),
            readout="cls",
            norm_eps=1e-6,
        ),
        num_params=num_params,
        patch_size=16,
        image_size=image_size,
        sources=sources,
        note=f"image encoder of BLIP, {note}",
    )


def _source(tag: str, file: str, layout: str = "blip") -> WeightsSource:
    return WeightsSource(
        tag=tag,
        url=f"https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/{file}.pth",
        sha256=None,
        layout=layout,
        licence="BSD-3-Clause",
    )


_PRETRAINED = "pre-trained on 129 million captioned images"
_CAPTIONS = "fine-tuned to caption COCO at 384 pixels"

SPECS = (
    _spec(
        "blip_base",
        768,
        12,
        85_798_656,
        224,
        _PRETRAINED,
        (
            _source("129m", "model_base"),
            # What the study's key filter reads from the same file.
            _source("129m_momentum", "model_base", "blip_momentum"),
            _source("129m_capfilt_large", "model_base_capfilt_large"),
        ),
    ),
    _spec(
        "blip_large",
        1024,
        24,
        303_301_632,
        224,
        _PRETRAINED,
        (
            _source("129m", "model_large"),
            _source("129m_momentum", "model_large", "blip_momentum"),
        ),
    ),
    _spec(
        "blip_base_384",
        768,
        12,
        86_090_496,
        384,
        _CAPTIONS,
        (_source("caption_coco", "model_base_caption_capfilt_large"),),
    ),
    _spec(
        "blip_large_384",
        1024,
        24,
        303_690_752,
        384,
        _CAPTIONS,
        (_source("caption_coco", "model_large_caption"),),
    ),
)
