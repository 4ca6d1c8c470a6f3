"""Swin as Microsoft published it; in timm, which moved each patch merging to the stage behind it
and keeps no buffers; and as transformers writes it to disk.

Sources: `models/swin_transformer.py` of microsoft/Swin-Transformer, timm's of the same name.
"""

import numpy as np

from fmi_jax.errors import UserError
from fmi_jax.models.swin import Swin, SwinArch
from fmi_jax.nn.window_attention import relative_position_index, window_regions
from weights_convert.engine import Head, Ignored, Layout, Rule, conv2d, fused, linear, norm, same

_HERE, _THERE = "layers.{i}.blocks.{j}", "blocks.{i}.blocks.{j}"
_INDEX = f"{_HERE}.attn.relative_position_index"
_MASK = f"{_HERE}.attn_mask"


def _buffers(arch: SwinArch, image_size: int) -> dict[str, np.ndarray]:
    """Compute the buffers of Microsoft's network when built for square images of that side."""
    buffers = {}
    for i, (depth, window) in enumerate(zip(arch.depths, arch.windows, strict=True)):
        side = image_size // arch.patch_size // 2**i
        if side > window and side % window:
            raise UserError(
                f"Microsoft's Swin cannot be built for images of {image_size} pixels: the maps of"
                f" stage {i} are {side}x{side}, in windows of {window}. Export it for hf or timm."
            )
        for j in range(depth):
            buffers[_INDEX.format(i=i, j=j)] = relative_position_index(window, window)
            if j % 2 and side > window:
                regions = window_regions(side, side, window=window, shift=window // 2)
                hidden = regions[:, :, None] != regions[:, None]
                buffers[_MASK.format(i=i, j=j)] = np.where(hidden, np.float32(-100), np.float32(0))
    return buffers


def _rules(merging: str) -> tuple[Rule, ...]:
    """The rules for files that have the patch merging of stage `i` under the name `merging`."""
    return (
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm("patch_embed.norm", "patch_embed.norm"),
        *norm(f"{_HERE}.norm1", f"{_THERE}.norm1"),
        *same(
            f"{_HERE}.attn.relative_position_bias_table",
            f"{_THERE}.attn.relative_position_bias_table",
        ),
        *linear(f"{_HERE}.attn.qkv", f"{_THERE}.attn.qkv"),
        *linear(f"{_HERE}.attn.proj", f"{_THERE}.attn.proj"),
        *norm(f"{_HERE}.norm2", f"{_THERE}.norm2"),
        *linear(f"{_HERE}.mlp.fc1", f"{_THERE}.mlp.fc1"),
        *linear(f"{_HERE}.mlp.fc2", f"{_THERE}.mlp.fc2"),
        *norm(f"{merging}.norm", "blocks.{i}.downsample.norm"),
        *linear(f"{merging}.reduction", "blocks.{i}.downsample.reduction", bias=False),
        *norm("norm", "norm"),
    )


LAYOUT = Layout(
    name="swin",
    title="Swin as published",
    family=Swin,
    rules=_rules("layers.{before}.downsample"),
    computed={"before": lambda i, _: i - 1},
    ignored=(
        Ignored("head.", "the classifier of the ImageNet classes"),
        Ignored(_INDEX, "follows from the window's size"),
        Ignored(_MASK, "follows from the sizes of window and image"),
    ),
    wrappers=("model", ""),
    head=Head("head"),
    buffers=_buffers,
)

TIMM = Layout(
    name="swin_timm",
    title="Swin of timm",
    family=Swin,
    rules=_rules("layers.{i}.downsample"),
    ignored=(Ignored("head.", "the classifier of the ImageNet classes"),),
    publishers=("timm",),
    head=Head("head.fc"),
)

# A `SwinModel` or `SwinForImageClassification`. The names in memory differ from transformers 5 on;
# `save_pretrained` still writes these.
_HF_BLOCK = "encoder.layers.{i}.blocks.{j}"
_QKV = tuple(f"{_HF_BLOCK}.attention.self.{part}" for part in ("query", "key", "value"))
# The file has the patch merging of a stage at the one before.
_MERGING = "encoder.layers.{before}.downsample"

HF = Layout(
    name="swin_hf",
    title="Swin of Hugging Face transformers",
    family=Swin,
    rules=(
        *conv2d("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *norm("embeddings.norm", "patch_embed.norm"),
        *norm(f"{_HF_BLOCK}.layernorm_before", f"{_THERE}.norm1"),
        *same(
            f"{_HF_BLOCK}.attention.self.relative_position_bias_table",
            f"{_THERE}.attn.relative_position_bias_table",
        ),
        *fused(_QKV, f"{_THERE}.attn.qkv"),
        *linear(f"{_HF_BLOCK}.attention.output.dense", f"{_THERE}.attn.proj"),
        *norm(f"{_HF_BLOCK}.layernorm_after", f"{_THERE}.norm2"),
        *linear(f"{_HF_BLOCK}.intermediate.dense", f"{_THERE}.mlp.fc1"),
        *linear(f"{_HF_BLOCK}.output.dense", f"{_THERE}.mlp.fc2"),
        *norm(f"{_MERGING}.norm", "blocks.{i}.downsample.norm"),
        *linear(f"{_MERGING}.reduction", "blocks.{i}.downsample.reduction", bias=False),
        *norm("layernorm", "norm"),
    ),
    computed={"before": lambda i, _: i - 1},
    ignored=(
        Ignored("classifier.", "the classifier of the ImageNet classes"),
        Ignored(
            f"{_HF_BLOCK}.attention.self.relative_position_index", "follows from the window's size"
        ),
    ),
    prefixes=("", "swin."),
    publishers=("hf",),
    head=Head("classifier", prefix="swin."),
)
