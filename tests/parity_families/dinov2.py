"""DINOv2, with and without registers."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fmi_jax.models.dinov2 import DINOv2, DINOv2Arch
from parity_families.family import Family, Groups, rows
from parity_families.vit import vit_arrays, vit_sizes


def _arch(config: Mapping[str, Any], groups: Groups) -> DINOv2Arch:
    swiglu = config["ffn_layer"].startswith("swiglu")
    hidden = int(config["embed_dim"] * config["mlp_ratio"])
    if swiglu:
        hidden = config.get("swiglu_hidden") or (int(hidden * 2 / 3) + 7) // 8 * 8
    return DINOv2Arch(
        swiglu=swiglu,
        mlp_width=hidden,
        num_registers=config["num_register_tokens"],
        pos_antialias=config["interpolate_antialias"],
        pos_offset=config["interpolate_offset"],
        **vit_sizes(config, groups),
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    del unused
    arrays, features = vit_arrays(module, images)
    registers = module.arch.num_registers
    arrays["final_registers"] = arrays["final_tokens_norm"][:, 1 : 1 + registers]
    arrays["final_patch_tokens"] = arrays["final_tokens_norm"][:, 1 + registers :]
    # Our grid of patch tokens takes the place of the reference's, so that it is compared too.
    prefix = arrays["final_tokens_prenorm"][:, : 1 + registers]
    arrays["final_tokens_prenorm"] = jnp.concatenate([prefix, rows(features.tokens)], axis=1)
    return arrays


FAMILY = Family(DINOv2, _arch, _arrays)
