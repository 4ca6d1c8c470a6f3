"""The image encoder of BLIP, or the momentum copy that the study's key filter ends up with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmi_jax.models.blip import BLIP, BLIPArch
from parity_families.family import Family, Groups, rows
from parity_families.vit import positions_grid, vit_arrays


def _arch(config: Mapping[str, Any], groups: Groups) -> BLIPArch:
    stem = next(
        tensors[key]
        for tensors in groups.values()
        for key in tensors
        if key.endswith("patch_embed.proj.weight")
    )
    return BLIPArch(
        in_channels=stem.shape[1],
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_width=int(config["embed_dim"] * config["mlp_ratio"]),
        grid=positions_grid(config),
        readout="cls",
        norm_eps=config["norm_eps"],
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    del unused
    arrays, features = vit_arrays(module, images)
    arrays["final_patch_tokens"] = rows(features.tokens)
    block, grid = module.arch.num_blocks - 1, module.grid(*images.shape[1:3])
    module.arch = dataclasses.replace(module.arch, readout="first_patch")
    last = arrays["final_tokens_prenorm"]
    arrays["final_study_x_cls"] = module.readout(last, block, grid).pooled
    return arrays


def _run_layout(run: Mapping[str, Any]) -> str | None:
    return "blip_momentum" if "visual_encoder_m" in run.get("weights", "") else None


FAMILY = Family(BLIP, _arch, _arrays, run_layout=_run_layout)
