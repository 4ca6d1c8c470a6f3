"""What Swin and the Focal Transformer have in common."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from parity_families.family import rows


def stage_arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    """Inner blocks are numbered over all stages, down-sampling after the stage it follows."""
    x = module.embed(images)
    arrays = {"tokens_in": rows(x)}
    units = 0
    for i, stage in enumerate(module.blocks):
        if stage.downsample is not None:
            x = stage.downsample(x)
            arrays[f"down_{i - 1:02d}"] = rows(x)
        for block in stage.blocks:
            x = block(x, None)
            arrays[f"block_{units:02d}"] = rows(x)
            units += 1
    features = module.readout(x, module.arch.num_blocks - 1, module.grid(*images.shape[1:3]))
    arrays["final_tokens_norm"] = rows(features.tokens)
    arrays["final_pooled"] = features.pooled
    if "head.weight" in unused:
        weight = jnp.asarray(unused["head.weight"]).T
        arrays["final_logits"] = features.pooled @ weight + unused["head.bias"]
    return arrays
