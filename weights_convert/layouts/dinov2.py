"""DINOv2 as Facebook Research published it, without and with registers, SwiGLU in ViT-g; and as
its code saves the teacher of a training.

Source: `dinov2/models/vision_transformer.py` and `dinov2/train/train.py` of
facebookresearch/dinov2.
"""

import dataclasses

from fmi_jax.models.dinov2 import DINOv2
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same

_CHUNKS = 4  # `block_chunks` of every training config that has any


def _rules(block: str) -> tuple[Rule, ...]:
    """The rules for files that have block `i` under the name `block`."""
    return (
        *same("cls_token"),
        *same("pos_embed"),
        *same("register_tokens"),
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm(f"{block}.norm1", "blocks.{i}.norm1"),
        *linear(f"{block}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear(f"{block}.attn.proj", "blocks.{i}.attn.proj"),
        *same(f"{block}.ls1.gamma", "blocks.{i}.ls1.gamma"),
        *norm(f"{block}.norm2", "blocks.{i}.norm2"),
        *linear(f"{block}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{block}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *linear(f"{block}.mlp.w12", "blocks.{i}.mlp.w12"),
        *linear(f"{block}.mlp.w3", "blocks.{i}.mlp.w3"),
        *same(f"{block}.ls2.gamma", "blocks.{i}.ls2.gamma"),
        *norm("norm", "norm"),
    )


def _chunk(block: int, depth: int) -> int:
    """The chunk that `block` is in: all have one size, but for what is left at the end."""
    return block // max(depth // _CHUNKS, 1)


LAYOUT = Layout(
    name="dinov2",
    title="DINOv2 as published",
    family=DINOv2,
    rules=_rules("blocks.{i}"),
    ignored=(
        Ignored(
            "mask_token",
            "stands for masked patches in pre-training alone",
            zeros=lambda arch: (1, arch.width),
        ),
    ),
    beside=(
        Ignored("dino_head.", "belongs to the loss of pre-training"),
        Ignored("ibot_head.", "belongs to the loss of pre-training"),
    ),
    wrappers=("", "teacher"),
    prefixes=("", "backbone."),
)

# Blocks keep their number of the whole network: a chunk begins with empty places.
CHUNKED = dataclasses.replace(
    LAYOUT,
    name="dinov2_chunked",
    title="DINOv2 as trained in chunks of blocks",
    rules=_rules("blocks.{chunk}.{i}"),
    computed={"chunk": _chunk},
    publishers=(),
)
