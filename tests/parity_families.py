"""How the parity tool runs each family: an arch from a case's sizes, and the case's arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmi_jax.models.base import ArchConfig, Backbone
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.models.dinov2 import DINOv2, DINOv2Arch

Groups = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Family:
    """What the tool must know of a family.

    Attributes:
      backbone: its class.
      arch: from `meta.config` and the tensors of the checkpoint.
      arrays: `(module, images [b, h, w, c], unused tensors)` to the arrays of a run by name,
        in the reference's axes.
    """

    backbone: type[Backbone]
    arch: Callable[[Mapping[str, Any], Groups], ArchConfig]
    arrays: Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]


def _vit_sizes(config: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
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


def _deit_arch(config: Mapping[str, Any], groups: Groups) -> DeiTArch:
    return DeiTArch(
        mlp_width=int(config["embed_dim"] * config["mlp_ratio"]),
        distilled=any("dist_token" in tensors for tensors in groups.values()),
        **_vit_sizes(config, groups),
    )


def _dinov2_arch(config: Mapping[str, Any], groups: Groups) -> DINOv2Arch:
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
        **_vit_sizes(config, groups),
    )


def _vit_arrays(module: Any, images: Any) -> tuple[dict[str, Any], Any]:
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


def _deit_arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    arrays, features = _vit_arrays(module, images)
    arrays["final_patch_tokens"] = _rows(features.tokens)
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


def _dinov2_arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    del unused
    arrays, features = _vit_arrays(module, images)
    registers = module.arch.num_registers
    arrays["final_registers"] = arrays["final_tokens_norm"][:, 1 : 1 + registers]
    arrays["final_patch_tokens"] = arrays["final_tokens_norm"][:, 1 + registers :]
    # Our grid of patch tokens takes the place of the reference's, so that it is compared too.
    prefix = arrays["final_tokens_prenorm"][:, : 1 + registers]
    arrays["final_tokens_prenorm"] = jnp.concatenate([prefix, _rows(features.tokens)], axis=1)
    return arrays


def _rows(tokens: Any) -> Any:
    """`[b, h, w, d]` as `[b, h * w, d]`, row by row."""
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


FAMILIES: Mapping[str, Family] = {
    "deit": Family(DeiT, _deit_arch, _deit_arrays),
    "dinov2": Family(DINOv2, _dinov2_arch, _dinov2_arrays),
}
