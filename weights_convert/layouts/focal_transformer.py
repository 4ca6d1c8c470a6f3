"""The Focal Transformer as Microsoft published it.

Source: `classification/focal_transformer.py` of microsoft/Focal-Transformer.
"""

import numpy as np

from fmi_jax.models.focal_transformer import FocalTransformer, FocalTransformerArch
from fmi_jax.nn.focal_attention import copies_of_window
from fmi_jax.nn.window_attention import relative_position_index, window_regions
from weights_convert.engine import Head, Ignored, Layout, conv2d, linear, norm, same

_HERE, _THERE = "layers.{i}.blocks.{j}", "blocks.{i}.blocks.{j}"
_INDICES = (
    f"{_HERE}.attn.relative_position_index",
    f"{_HERE}.attn.relative_position_index_{{k}}",
    f"{_HERE}.attn.valid_ind_rolled",
    f"{_HERE}.attn.valid_ind_unfold_{{k}}",
)
_MASK = f"{_HERE}.attn_mask"


def _buffers(arch: FocalTransformerArch, image_size: int) -> dict[str, np.ndarray]:
    """Compute the buffers of Microsoft's network when built for square images of that side."""
    own, pooled, rolled, unfolded = _INDICES
    buffers = {}
    for i, window in enumerate(arch.windows):
        side, reach = image_size // arch.patch_size // 2**i, arch.focal_windows[i] // 2
        for j, expand in enumerate(arch.expand_sizes[i]):
            buffers[own.format(i=i, j=j)] = relative_position_index(window, window)
            if expand:
                copies = copies_of_window(window, expand)
                buffers[rolled.format(i=i, j=j)] = np.flatnonzero(copies >= 0)
            for k in range(arch.focal_levels[i] - 1):
                region = 2**k + 2 * reach
                buffers[pooled.format(i=i, j=j, k=k)] = relative_position_index(window, region)
                if k:
                    skipped = 2**k - 1  # of the square that is unfolded around a window
                    places = np.arange((region + skipped) ** 2).reshape(region + skipped, -1)
                    buffers[unfolded.format(i=i, j=j, k=k)] = places[skipped:, skipped:].ravel()
            if arch.shift and j % 2 and side > window:
                regions = window_regions(side, side, window=window, shift=window // 2)
                hidden = regions[:, :, None] != regions[:, None]
                buffers[_MASK.format(i=i, j=j)] = np.where(hidden, np.float32(-100), np.float32(0))
    return buffers


LAYOUT = Layout(
    name="focal_transformer",
    title="Focal Transformer as published",
    family=FocalTransformer,
    rules=(
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm("patch_embed.norm", "patch_embed.norm"),
        *norm(f"{_HERE}.norm1", f"{_THERE}.norm1"),
        *(
            rule
            for table in (
                "relative_position_bias_table",
                "relative_position_bias_table_to_neighbors",
                "relative_position_bias_table_to_windows.{k}",
            )
            for rule in same(f"{_HERE}.attn.{table}", f"{_THERE}.attn.{table}")
        ),
        *linear(f"{_HERE}.pool_layers.{{k}}", f"{_THERE}.attn.pool_layers.{{k}}"),
        *linear(f"{_HERE}.attn.qkv", f"{_THERE}.attn.qkv"),
        *linear(f"{_HERE}.attn.proj", f"{_THERE}.attn.proj"),
        *same(f"{_HERE}.gamma_1", f"{_THERE}.ls1.gamma"),
        *norm(f"{_HERE}.norm2", f"{_THERE}.norm2"),
        *linear(f"{_HERE}.mlp.fc1", f"{_THERE}.mlp.fc1"),
        *linear(f"{_HERE}.mlp.fc2", f"{_THERE}.mlp.fc2"),
        *same(f"{_HERE}.gamma_2", f"{_THERE}.ls2.gamma"),
        # What leads to a stage is part of the one before it.
        *norm("layers.{before}.downsample.pre_norm", "blocks.{i}.downsample.pre_norm"),
        *conv2d("layers.{before}.downsample.proj", "blocks.{i}.downsample.proj"),
        *norm("layers.{before}.downsample.norm", "blocks.{i}.downsample.norm"),
        *norm("norm", "norm"),
    ),
    computed={"before": lambda i, _: i - 1},
    ignored=(
        Ignored("head.", "the classifier of the 1000 ImageNet classes"),
        *(Ignored(key, "follows from the sizes of windows") for key in _INDICES),
        Ignored(_MASK, "follows from the sizes of window and image"),
    ),
    wrappers=("model", ""),
    head=Head("head"),
    buffers=_buffers,
)
