"""U-Net of segmentation_models_pytorch on a ResNet."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fmi_jax.models.base import ArchConfig, Backbone, Execution
from fmi_jax.models.resnet import ResNet
from fmi_jax.protocols.heads.unet import UNet
from parity_families import resnet
from parity_families.family import Family, Groups
from weights_convert.engine import Layout, batch_norm, conv2d
from weights_convert.layouts.registry import LAYOUTS

_ENCODER = "encoder."
_HERE, _THERE = "decoder.blocks.{i}.conv{k}", "head.decoder.stages.{i}.conv{k}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetArch(ArchConfig):
    """The shape of a U-Net; its blocks are those of the encoder.

    Attributes:
      encoder: arch of the encoder; its own `in_channels` gives way to that of the whole.
      widths: channels of the decoder.
      num_classes: number of logits of a pixel.
    """

    encoder: ArchConfig
    widths: tuple[int, ...]
    num_classes: int

    @property
    def num_blocks(self) -> int:
        return self.encoder.num_blocks

    @property
    def feature_width(self) -> int:
        return self.encoder.feature_width

    def truncated(self, block: int) -> "UNetArch":
        return dataclasses.replace(self, encoder=self.encoder.truncated(block))


class WholeUNet(UNet, Backbone[UNetArch]):
    """A U-Net that is a backbone, too, so that it is converted and loaded as any other."""

    embed = readout = grid = None  # type: ignore[assignment]  # nobody asks for its features

    def __init__(self, arch: UNetArch, execution: Execution, *, rngs: nnx.Rngs):
        encoder = dataclasses.replace(arch.encoder, in_channels=arch.in_channels)
        super().__init__(
            ResNet(encoder, execution, rngs=rngs),  # type: ignore[arg-type]
            arch.num_classes,
            widths=arch.widths,
            eval_mode=False,
            rngs=rngs,
        )
        self.arch, self.execution = arch, execution


def layout() -> Layout:
    """The keys of `smp.Unet("resnet50")`: those of its encoder, with the decoder beside it."""
    encoder = LAYOUTS["resnet_smp"]
    return dataclasses.replace(
        encoder,
        name="unet_smp",
        family=WholeUNet,
        rules=(
            *(
                dataclasses.replace(
                    rule,
                    sources=tuple(_ENCODER + name for name in rule.sources),
                    targets=tuple("backbone." + name for name in rule.targets),
                )
                for rule in encoder.rules
            ),
            *conv2d(f"{_HERE}.0", f"{_THERE}.conv", bias=False),
            *batch_norm(f"{_HERE}.1", f"{_THERE}.norm"),
            *conv2d("segmentation_head.0", "head.conv"),
        ),
        ignored=(),
        prefixes=("",),
    )


def _arch(config: Mapping[str, Any], groups: Groups) -> UNetArch:
    encoder = resnet.arch_of(config, "encoder.conv1.weight", groups)
    return UNetArch(
        in_channels=encoder.in_channels,
        encoder=encoder,
        widths=tuple(config["decoder_channels"]),
        num_classes=config["num_classes"],
    )


def _arrays(
    module: Any, images: Any, given: Mapping[str, Any], rngs: nnx.Rngs | None = None
) -> dict[str, Any]:
    training = rngs is not None
    head = module.head
    fine, features = module.backbone.pyramid(images, head.maps.reads, rngs=rngs)
    maps = head.maps(images, fine, [each.tokens for each in features], training=training)
    decoded = head.decoder(maps, images.shape[1:3], training=training)
    arrays = {f"feature_{i:02d}": x for i, x in enumerate(maps, 1)}
    arrays |= {f"decoder_{i:02d}": x for i, x in enumerate(decoded)}
    # The way a user goes; in training mode it would count the batch twice.
    logits = head.conv(decoded[-1]) if training else module(images)
    arrays |= {"final_logits": logits, "final_probabilities": jax.nn.sigmoid(logits)}
    return {name: jnp.moveaxis(x, -1, 1) for name, x in arrays.items()}


def soft_dice(probabilities: Any, mask: Any) -> Any:
    """The study's loss over all pixels of a batch, smooth 1."""
    return 1 - (2 * (probabilities * mask).sum() + 1) / (probabilities.sum() + mask.sum() + 1)


def _loss(arrays: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    return soft_dice(arrays["final_probabilities"], given["mask"])


def _layouts(arch: Any) -> Sequence[Layout]:
    return [layout()]


FAMILY = Family(WholeUNet, _arch, _arrays, layouts=_layouts, loss=_loss)
