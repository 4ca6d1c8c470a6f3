"""DeiT and DINO."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fmi_jax.models.deit import DeiT, DeiTArch
from parity_families.family import Family, Groups, rows
from parity_families.vit import vit_arrays, vit_sizes


def _arch(config: Mapping[str, Any], groups: Groups) -> DeiTArch:
    return DeiTArch(
        mlp_width=int(config["embed_dim"] * config["mlp_ratio"]),
        distilled=any("dist_token" in tensors for tensors in groups.values()),
        **vit_sizes(config, groups),
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    # The reference's stem drops the pixels beyond the last whole patch; ours refuses such sizes.
    height, width = (
        side // module.arch.patch_size * module.arch.patch_size for side in images.shape[1:3]
    )
    arrays, features = vit_arrays(module, images[:, :height, :width])
    arrays["final_patch_tokens"] = rows(features.tokens)
    # A head reads the token of its place; those of a distilled network are averaged.
    heads = [name for name in ("head", "head_dist") if f"{name}.weight" in unused]
    logits = [
        arrays["final_tokens_norm"][:, i] @ jnp.asarray(unused[f"{name}.weight"]).T
        + unused[f"{name}.bias"]
        for i, name in enumerate(heads)
    ]
    if logits:
        arrays["final_logits"] = sum(logits) / len(logits)
    return arrays


FAMILY = Family(DeiT, _arch, _arrays)
