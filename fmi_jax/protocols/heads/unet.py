"""The decoder of a U-Net, from the coarsest map of a backbone to the size of the image.

On a network of stages it is that of segmentation_models_pytorch's `Unet`, which the third study
trains on a ResNet-50. A plain vision transformer has one grid of tokens: its decoder reads four
depths at growing sizes, as in UNETR (arXiv 2103.10504), and the image at half and at a quarter of
its size.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.arch import StageByStage
from fmi_jax.models.base import ArchConfig, Backbone
from fmi_jax.nn import resize
from fmi_jax.nn.conv import ConvNorm, convolution
from fmi_jax.protocols.per_pixel import head_spec
from fmi_jax.rules import Condition, ruled

Maps = list[Float[Array, "b _ _ _"]]

_WIDTHS = 5


@dataclasses.dataclass(slots=True)
class UNetConfig:
    """Decoder of a U-Net (head `unet`).

    Attributes:
      widths: channels of the decoder at 1/16, 1/8, 1/4, 1/2 of the image's size and at all of it;
        a backbone whose coarsest map is finer leaves out the first.
    """

    widths: tuple[int, ...] = ruled(
        (256, 128, 64, 32, 16),
        Condition(
            lambda x: len(x) == _WIDTHS and min(x) > 0, f"expected {_WIDTHS} numbers above 0"
        ),
    )


class UNet(nnx.Module):
    """A backbone with the decoder of a U-Net.

    Args:
      backbone: the feature extractor.
      num_classes: width `k` of the logits.
      widths: see `UNetConfig`.
      eval_mode: True if the backbone is always in evaluation mode; batch norms of the decoder are
        in training mode when it trains all the same.
      rngs: stream that draws the decoder: Kaiming uniform, the layer of the logits Xavier uniform.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        widths: Sequence[int],
        eval_mode: bool,
        rngs: nnx.Rngs,
    ):
        self.backbone, self.eval_mode = backbone, eval_mode
        self.head = UNetHead(
            backbone.arch, num_classes, widths, dtype=backbone.execution.dtype, rngs=rngs
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        fine, features = self.backbone.pyramid(
            images, self.head.maps.reads, rngs=None if self.eval_mode else rngs
        )
        grids = [each.tokens for each in features]
        return self.head(images, fine, grids, training=rngs is not None)


class UNetHead(nnx.Module):
    """Maps of a backbone and of the image, the decoder that joins them, and a layer of logits.

    Args:
      arch: arch of the backbone.
      num_classes: width `k` of the logits.
      widths: see `UNetConfig`.
      dtype: compute type of all but the logits.
      rngs: stream `params`.
    """

    def __init__(
        self,
        arch: ArchConfig,
        num_classes: int,
        widths: Sequence[int],
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        kind = StageMaps if isinstance(arch, StageByStage) else TokenMaps
        self.maps = kind(arch, widths, dtype=dtype, rngs=rngs)
        self.decoder = UNetDecoder(self.maps.widths, widths, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(
            widths[-1],
            num_classes,
            (3, 3),
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.glorot_uniform(),
            conv_general_dilated=convolution,
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "b h w c"], fine: Array | None, grids: Maps, *, training: bool
    ) -> Float[Array, "b h w k"]:
        """Logits in float32, from the backbone's map of `fine_width` channels and its grids."""
        maps = self.maps(images, fine, grids, training=training)
        image_size = images.shape[1], images.shape[2]
        *_, x = self.decoder(maps, image_size, training=training)
        return self.conv(x.astype(jnp.float32))


class StageMaps(nnx.Module):
    """Maps of a network of stages, and of its stem: of the image, if the stem has none.

    Args:
      arch: arch of the network.
      widths: see `UNetConfig`.
      dtype: compute type.
      rngs: stream `params`.

    Attributes:
      reads: blocks that are read.
      widths: channels of the maps, the finest first.
    """

    def __init__(self, arch: ArchConfig, widths: Sequence[int], *, dtype: Any, rngs: nnx.Rngs):
        half = widths[-2]
        self.reads = tuple(range(arch.num_blocks))
        self.widths = (
            arch.fine_width or half,
            *(arch.truncated(block).token_width for block in self.reads),
        )
        self.image = (
            None
            if arch.fine_width
            else ConvNorm(arch.in_channels, half, 3, 2, dtype=dtype, rngs=rngs)
        )

    def __call__(
        self, images: Float[Array, "b h w c"], fine: Array | None, grids: Maps, *, training: bool
    ) -> Maps:
        """Maps, the finest first."""
        if self.image is not None:
            fine = self.image(images, training=training)
        assert fine is not None
        return [fine, *grids]


class TokenMaps(nnx.Module):
    """Maps made of the tokens of four depths, which are on one grid, and of the image.

    The last depth is the coarsest map. The one before it is enlarged to an eighth of the image's
    size, the next to a quarter and the first to half of it; maps of the image are added to these
    two. No map is smaller than the grid.

    Args:
      arch: arch of the network.
      widths: see `UNetConfig`.
      dtype: compute type.
      rngs: stream `params`.

    Attributes:
      reads: blocks that are read; in a network of fewer than four one is read more than once.
      widths: channels of the maps, the finest first.
    """

    def __init__(self, arch: ArchConfig, widths: Sequence[int], *, dtype: Any, rngs: nnx.Rngs):
        eighth, quarter, half, _ = widths[-4:]
        count = arch.num_blocks
        self.reads = tuple(max(count * i // 4 - 1, 0) for i in range(1, 5))
        self.widths = (half, quarter, eighth, arch.token_width)
        self.images = nnx.List(
            ConvNorm(before, width, 3, 2, dtype=dtype, rngs=rngs)
            for before, width in ((arch.in_channels, half), (half, quarter))
        )
        self.projections = nnx.List(
            ConvNorm(arch.truncated(block).token_width, width, 1, dtype=dtype, rngs=rngs)
            for block, width in zip(self.reads[:-1], self.widths[:-1], strict=True)
        )

    def __call__(
        self, images: Float[Array, "b h w c"], fine: Array | None, grids: Maps, *, training: bool
    ) -> Maps:
        """Maps, the finest first."""
        del fine
        maps, x, (height, width) = [], images, images.shape[1:3]
        for i, project in enumerate(self.projections):
            height, width = -(-height // 2), -(-width // 2)
            rows, cols = (
                max(sides) for sides in zip((height, width), grids[i].shape[1:3], strict=True)
            )
            made = resize.enlarge(project(grids[i], training=training), rows, cols)
            if i < len(self.images):
                x = self.images[i](x, training=training)
                made = made + resize.enlarge(x, rows, cols)
            maps.append(made)
        return [*maps, grids[-1]]


class UNetDecoder(nnx.Module):
    """Layers that double a map again and again, each beside the next finer map.

    Args:
      maps: channels of the maps, the finest first.
      widths: see `UNetConfig`.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(self, maps: Sequence[int], widths: Sequence[int], *, dtype: Any, rngs: nnx.Rngs):
        self.dtype = dtype
        *finer, before = maps
        self.stages = nnx.List()
        for beside, width in zip((*reversed(finer), 0), widths[-len(maps) :], strict=True):
            self.stages.append(_Stage(before, beside, width, dtype=dtype, rngs=rngs))
            before = width

    def __call__(
        self, maps: Maps, image_size: tuple[int, int], *, training: bool
    ) -> list[Float[Array, "b _ _ _"]]:
        """Output of each stage; that of the last one has the size of the image."""
        *finer, x = (each.astype(self.dtype) for each in maps)
        outputs = []
        for stage, beside in zip(self.stages, (*reversed(finer), None), strict=True):
            if beside is None:
                x = resize.enlarge(x, *image_size)
            else:
                x = resize.enlarge(x, *beside.shape[1:3])
                x = jnp.concatenate([x, beside], axis=-1)
            x = stage(x, training=training)
            outputs.append(x)
        return outputs


class _Stage(nnx.Module):
    """Two 3 x 3 convolutions, each with a batch norm and ReLU."""

    def __init__(self, before: int, beside: int, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(before + beside, width, 3, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(width, width, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, training: bool) -> Float[Array, "b h w d"]:
        return self.conv2(self.conv1(x, training=training), training=training)


SPEC = head_spec("unet", "decoder of a U-Net", UNet, UNetConfig, {"unet.widths": (13, 11, 7, 5, 3)})
