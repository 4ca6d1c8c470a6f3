"""Focal Transformer."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from fmi_jax.errors import UserError
from fmi_jax.models.focal_transformer import FocalTransformer, FocalTransformerArch
from parity_families.family import Family, Groups
from parity_families.stages import stage_arrays

_FIXED = {"patch_norm": True, "ape": False}  # nothing published has anything else


def _arch(config: Mapping[str, Any], groups: Groups) -> FocalTransformerArch:
    for field, value in _FIXED.items():
        if config.get(field, value) != value:
            raise UserError(f"{field}={config[field]!r} is not supported: expected {value!r}.")
    if config["focal_pool"] not in ("fc", "none"):
        raise UserError(f"focal_pool={config['focal_pool']!r} is not supported: expected 'fc'.")
    (tensors,) = (t for t in groups.values() if "patch_embed.proj.weight" in t)
    stages = range(len(config["depths"]))
    tables = [tensors[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]
    levels = config["focal_levels"] if config["focal_pool"] == "fc" else [1 for _ in stages]

    def expand(i: int, j: int) -> int:
        neighbours = f"layers.{i}.blocks.{j}.attn.relative_position_bias_table_to_neighbors"
        return config["expand_sizes"][i] if neighbours in tensors else 0

    return FocalTransformerArch(
        in_channels=tensors["patch_embed.proj.weight"].shape[1],
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depths=tuple(config["depths"]),
        num_heads=tuple(config["num_heads"]),
        windows=tuple((round(len(table) ** 0.5) + 1) // 2 for table in tables),
        expand_sizes=tuple(tuple(expand(i, j) for j in range(config["depths"][i])) for i in stages),
        focal_levels=tuple(levels),
        focal_windows=tuple(config["focal_windows"]),
        mlp_ratio=config["mlp_ratio"],
        conv_embed=config["use_conv_embed"],
        shift=config["use_shift"],
        pre_norm=config["use_pre_norm"],
        layer_scale=config["use_layerscale"],
        norm_eps=config["norm_eps"],
        final_norm=True,
    )


def _run_arch(arch: FocalTransformerArch, run: Mapping[str, Any]) -> FocalTransformerArch:
    """The study's own network has fewer levels than the weights that it loads."""
    levels = re.search(r"focal_levels=\[([\d, ]+)\]", run.get("mode", ""))
    if levels is None:
        return arch
    return dataclasses.replace(arch, focal_levels=tuple(map(int, levels[1].split(","))))


FAMILY = Family(FocalTransformer, _arch, stage_arrays, _run_arch)
