"""What DeiT, DINO and DINOv2 have in common."""

from collections.abc import Mapping
from typing import Any

from parity_families.family import Groups


def vit_sizes(config: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    (stem,) = (
        tensors["patch_embed.proj.weight"]
        for tensors in groups.values()
        if "patch_embed.proj.weight" in tensors
    )
    rows, cols = config.get("pos_embed_grid") or [config["img_size"] // config["patch_size"]] * 2
    if rows != cols:
        raise ValueError(f"a position grid of {rows}x{cols}: these families publish square ones")
    return {
        "in_channels": stem.shape[1],
        "patch_size": config["patch_size"],
        "width": config["embed_dim"],
        "depth": config["depth"],
        "num_heads": config["num_heads"],
        "grid_size": rows,
        "norm_eps": config["norm_eps"],
    }


def positions_grid(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of patches that the checkpoint has positions for."""
    sides = config["img_size"]
    height, width = (sides, sides) if isinstance(sides, int) else sides
    patch = config["patch_size"]
    rows, cols = config.get("pos_embed_grid") or (height // patch, width // patch)
    return rows, cols


def vit_arrays(module: Any, images: Any) -> tuple[dict[str, Any], Any]:
    """The arrays that all plain ViTs share, and the features that a user gets."""
    x = module.embed(images)
    arrays = {"tokens_in": x}
    for i, block in enumerate(module.blocks):
        x = module.run_block(block, x, None)
        arrays[f"block_{i:02d}"] = x
    features = module.readout(x, module.arch.num_blocks - 1, module.grid(*images.shape[1:3]))
    arrays["final_tokens_prenorm"] = x
    arrays["final_tokens_norm"] = module.norm(x)
    arrays["final_cls"] = features.cls
    arrays["final_pooled"] = features.pooled
    return arrays, features
