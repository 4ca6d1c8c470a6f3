"""Swin."""

from collections.abc import Mapping
from typing import Any

from fmi_jax.models.swin import Swin, SwinArch
from parity_families.family import Family, Groups
from parity_families.stages import stage_arrays


def _arch(config: Mapping[str, Any], groups: Groups) -> SwinArch:
    (tensors,) = (t for t in groups.values() if "patch_embed.proj.weight" in t)
    tables = [
        tensors[f"layers.{i}.blocks.0.attn.relative_position_bias_table"]
        for i in range(len(config["depths"]))
    ]
    return SwinArch(
        in_channels=tensors["patch_embed.proj.weight"].shape[1],
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depths=tuple(config["depths"]),
        num_heads=tuple(config["num_heads"]),
        windows=tuple((round(len(table) ** 0.5) + 1) // 2 for table in tables),
        mlp_ratio=config["mlp_ratio"],
        norm_eps=config["norm_eps"],
        final_norm=True,
    )


FAMILY = Family(Swin, _arch, stage_arrays)
