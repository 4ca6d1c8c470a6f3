"""FocalNet."""

from collections.abc import Mapping
from typing import Any

from fmi_jax.models.focalnet import FocalNet, FocalNetArch
from parity_families.family import Family, Groups, rows


def _arch(config: Mapping[str, Any], groups: Groups) -> FocalNetArch:
    return FocalNetArch(
        in_channels=stem_channels(groups),
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depths=tuple(config["depths"]),
        focal_levels=tuple(config["focal_levels"]),
        focal_windows=tuple(config["focal_windows"]),
        mlp_ratio=float(config["mlp_ratio"]),
        conv_embed=config["use_conv_embed"],
        layer_scale=config["use_layerscale"],
        post_norm=config["use_postln"],
        post_norm_in_modulation=config["use_postln_in_modulation"],
        normalise_modulator=config["normalize_modulator"],
        final_norm=any("norm.weight" in tensors for tensors in groups.values()),
        norm_eps=config["norm_eps"],
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    x = module.embed(images)
    arrays, downs, x = stage_arrays(module, x)
    arrays |= {name: rows(down) for name, down in downs.items()}
    grid = module.grid(*images.shape[1:3])
    features = module.readout(x, module.arch.num_blocks - 1, grid)
    arrays["final_tokens_norm"] = rows(features.tokens)
    arrays["final_pooled"] = features.pooled
    if "head.weight" in unused:
        logits = features.pooled @ unused["head.weight"].T + unused["head.bias"]
        arrays["final_logits"] = logits
    return arrays


def stem_channels(groups: Groups, prefix: str = "") -> int:
    """Input channels of the checkpoint's stem."""
    (stem,) = (
        tensors[f"{prefix}patch_embed.proj.weight"]
        for tensors in groups.values()
        if f"{prefix}patch_embed.proj.weight" in tensors
    )
    return stem.shape[1]


def stage_arrays(module: Any, x: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """`tokens_in` and every `block_NN`, every `down_NN [b, h, w, d]`, the last stage's output."""
    arrays, downs = {"tokens_in": rows(x)}, {}
    number = 0
    for i, stage in enumerate(module.blocks):
        if stage.downsample is not None:
            x = downs[f"down_{i - 1:02d}"] = stage.downsample(x)
        for block in stage.blocks:
            x = block(x, None)
            arrays[f"block_{number:02d}"] = rows(x)
            number += 1
    return arrays, downs, x


FAMILY = Family(FocalNet, _arch, _arrays)
