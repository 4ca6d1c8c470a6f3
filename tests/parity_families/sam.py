"""The image encoder of Segment Anything."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmi_jax.models.sam import SAM, SAMArch
from parity_families.family import Family, Groups
from parity_families.vit import positions_grid


def _arch(config: Mapping[str, Any], groups: Groups) -> SAMArch:
    tensors = {
        key.removeprefix("image_encoder."): tensor
        for group in groups.values()
        for key, tensor in group.items()
    }
    neck = tensors.get("neck.0.weight")
    return SAMArch(
        in_channels=tensors["patch_embed.proj.weight"].shape[1],
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_width=int(config["embed_dim"] * config.get("mlp_ratio", 4)),
        window_size=config["window_size"],
        global_blocks=tuple(config["global_attn_indexes"]),
        grid=positions_grid(config),
        rel_pos_resize="linear",
        neck_width=None if neck is None else neck.shape[0],
        norm_eps=config.get("norm_eps", 1e-6),
    )


def _run_arch(arch: SAMArch, run: Mapping[str, Any]) -> SAMArch:
    """The study's loader, which takes square images, reads the nearest relative position; the
    reference interpolates at run time, in `get_rel_pos`."""
    reference = "get_rel_pos" in run.get("mode", "") or arch.grid[0] != arch.grid[1]
    return dataclasses.replace(arch, rel_pos_resize="linear" if reference else "nearest")


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    del unused
    x = module.embed(images)
    arrays = {"tokens_in": x}
    for i, block in enumerate(module.blocks):
        x = module.run_block(block, x, None)
        arrays[f"block_{i:02d}"] = x
    features = module.readout(x, module.arch.num_blocks - 1, module.grid(*images.shape[1:3]))
    arrays["final_tokens"] = features.tokens
    arrays["final_pooled"] = features.pooled
    if module.arch.neck_width is not None:
        arrays["final_neck"] = module.neck(features.tokens).transpose(0, 3, 1, 2)
    return arrays


FAMILY = Family(SAM, _arch, _arrays, run_arch=_run_arch)
