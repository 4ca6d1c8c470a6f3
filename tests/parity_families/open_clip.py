"""The image tower of CLIP."""

from collections.abc import Mapping
from typing import Any

from fmi_jax.models.open_clip import OpenCLIP, OpenCLIPArch
from parity_families.family import Family, Groups, rows
from parity_families.vit import positions_grid, vit_arrays


def _arch(config: Mapping[str, Any], groups: Groups) -> OpenCLIPArch:
    (stem,) = (
        tensors[key]
        for tensors in groups.values()
        for key in tensors
        if key.endswith("visual.conv1.weight")
    )
    return OpenCLIPArch(
        in_channels=stem.shape[1],
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_width=int(config["embed_dim"] * config["mlp_ratio"]),
        embed_width=config["output_dim"],
        quick_gelu=config["quick_gelu"],
        grid=positions_grid(config),
        norm_tokens=False,
        norm_eps=config["norm_eps"],
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    del unused
    arrays, features = vit_arrays(module, images)
    arrays["final_study_patch_tokens"] = rows(features.tokens)
    arrays["final_patch_tokens"] = arrays["final_tokens_norm"][:, 1:]
    return arrays


FAMILY = Family(OpenCLIP, _arch, _arrays)
