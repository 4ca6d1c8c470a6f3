"""ConvNeXt, and DINOv3's."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fmi_jax.models.convnext import ConvNeXt, ConvNeXtArch
from parity_families.family import Family, Groups, rows


def _arch(config: Mapping[str, Any], groups: Groups) -> ConvNeXtArch:
    stem = "downsample_layers.0.0.weight"
    (kernel,) = (tensors[stem] for tensors in groups.values() if stem in tensors)
    return ConvNeXtArch(
        in_channels=kernel.shape[1],
        patch_size=config["patch_size"],
        depths=tuple(config["depths"]),
        widths=tuple(config["dims"]),
        mlp_ratio=float(config["mlp_ratio"]),
        norm_eps=config["norm_eps"],
        final_norm=True,
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks are numbered over all stages, down-sampling after the stage it follows."""
    x = module.embed(images)
    maps, number = {"stem": x}, 0
    for i, stage in enumerate(module.blocks):
        if stage.downsample is not None:
            x = maps[f"down_{i - 1:02d}"] = stage.downsample(x)
        for block in stage.blocks:
            x = maps[f"block_{number:02d}"] = block(x, None)
            number += 1
    features = module.readout(x, module.arch.num_blocks - 1, module.grid(*images.shape[1:3]))
    arrays = {name: jnp.moveaxis(value, -1, 1) for name, value in maps.items()}
    arrays |= {
        "final_pooled": features.pooled,
        "final_cls": features.pooled,  # as DINOv3 calls it
        "final_patch_tokens": rows(features.tokens),
    }
    if "head.weight" in unused:
        arrays["final_logits"] = features.pooled @ unused["head.weight"].T + unused["head.bias"]
    return arrays


FAMILY = Family(ConvNeXt, _arch, _arrays)
