"""ResNet."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fmi_jax.models.resnet import ResNet, ResNetArch
from parity_families.family import Family, Groups


def arch_of(config: Mapping[str, Any], stem_key: str, groups: Groups) -> ResNetArch:
    """The arch of a case whose checkpoint has its first kernel under `stem_key`."""
    (stem,) = (t[stem_key] for t in groups.values() if stem_key in t)
    return ResNetArch(
        in_channels=stem.shape[1],
        stem_width=config["stem_channels"],
        depths=tuple(config["layers"]),
        widths=tuple(config["planes"]),
        expansion=config["expansion"],
        norm_eps=config["bn_eps"],
        norm_momentum=config["bn_momentum"],
    )


def _arch(config: Mapping[str, Any], groups: Groups) -> ResNetArch:
    return arch_of(config, "conv1.weight", groups)


def _arrays(
    module: Any, images: Any, unused: Mapping[str, Any], rngs: nnx.Rngs | None = None
) -> dict[str, Any]:
    _, x = module.enter(images, rngs)
    arrays = {"stem": x}
    for i, stage in enumerate(module.blocks):
        for bottleneck in stage:
            x = module.run_block([bottleneck], x, rngs)
            arrays[f"block_{len([n for n in arrays if n.startswith('block')]):02d}"] = x
        arrays[f"stage_{i:02d}"] = x
    features = module.readout(x, module.arch.num_blocks - 1, module.grid(*images.shape[1:3]))
    arrays = {name: jnp.moveaxis(value, -1, 1) for name, value in arrays.items()}
    arrays["final_pooled"] = features.pooled
    if "fc.weight" in unused:
        arrays["final_logits"] = features.pooled @ unused["fc.weight"].T + unused["fc.bias"]
    return arrays


FAMILY = Family(ResNet, _arch, _arrays)
