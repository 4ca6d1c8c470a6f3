"""SEEM."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fmi_jax.models.seem import SEEM, SEEMArch
from parity_families.family import Family, Groups, study_stem
from parity_families.focalnet import stage_arrays, stem_channels


def _arch(config: Mapping[str, Any], groups: Groups) -> SEEMArch:
    if not (config["conv_embed"] and config["use_postln"]):
        raise ValueError("SEEM has overlapping convolutions and norms after its branches")
    return SEEMArch(
        in_channels=stem_channels(groups, "backbone."),
        width=config["embed_dim"],
        depths=tuple(config["depths"]),
        focal_levels=tuple(config["focal_levels"]),
        focal_windows=tuple(config["focal_windows"]),
        mlp_ratio=float(config["mlp_ratio"]),
        post_norm_in_modulation=config["use_postln_in_modulation"],
        normalise_modulator=config["scaling_modulator"],
        norm_eps=config["norm_eps"],
    )


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    del unused
    x = module.embed(images)
    arrays, downs, _ = stage_arrays(module, x)
    arrays |= {name: _channels_first(down) for name, down in downs.items()}
    arrays["patch_embed"] = _channels_first(x)
    # Through the stages as a user runs them.
    stages = module.features_at(images, range(module.arch.num_blocks))
    for i, features in enumerate(stages):
        arrays[f"final_res{i + 2}"] = _channels_first(features.tokens)
    arrays["final_pooled"] = stages[-1].pooled
    return arrays


def _channels_first(x: Any) -> Any:
    return jnp.moveaxis(x, -1, 1)


FAMILY = Family(SEEM, _arch, _arrays, run_arch=study_stem)
