"""DINOv2 as Facebook Research published it, without and with registers, SwiGLU in ViT-g, and as
its code saves the teacher of a training; as transformers writes it to disk; and in timm.

Sources: `dinov2/models/vision_transformer.py` and `dinov2/train/train.py` of
facebookresearch/dinov2, timm's `vision_transformer.py` (`_convert_dinov2`, `no_embed_class`).
"""

import dataclasses

from fmi_jax.models.dinov2 import DINOv2
from weights_convert.engine import Head, Ignored, Layout, Rule, conv2d, fused, linear, norm, same
from weights_convert.ops import UNFOLD_CLS_POSITION

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

# Blocks keep their number of the whole network: a chunk begins with empty places. All chunks have
# one size, but for what is left at the end.
CHUNKED = dataclasses.replace(
    LAYOUT,
    name="dinov2_chunked",
    title="DINOv2 as trained in chunks of blocks",
    rules=_rules("blocks.{chunk}.{i}"),
    computed={"chunk": lambda block, depth: block // max(depth // _CHUNKS, 1)},
    publishers=(),
)

# A `Dinov2Model` or `Dinov2WithRegistersModel`. The names in memory differ from transformers 5 on;
# `save_pretrained` still writes these.
_HF_BLOCK = "encoder.layer.{i}"
_QKV = tuple(f"{_HF_BLOCK}.attention.attention.{part}" for part in ("query", "key", "value"))

HF = Layout(
    name="dinov2_hf",
    title="DINOv2 of Hugging Face transformers",
    family=DINOv2,
    rules=(
        *same("embeddings.cls_token", "cls_token"),
        *same("embeddings.position_embeddings", "pos_embed"),
        *same("embeddings.register_tokens", "register_tokens"),
        *conv2d("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *norm(f"{_HF_BLOCK}.norm1", "blocks.{i}.norm1"),
        *fused(_QKV, "blocks.{i}.attn.qkv"),
        *linear(f"{_HF_BLOCK}.attention.output.dense", "blocks.{i}.attn.proj"),
        *same(f"{_HF_BLOCK}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
        *norm(f"{_HF_BLOCK}.norm2", "blocks.{i}.norm2"),
        *linear(f"{_HF_BLOCK}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{_HF_BLOCK}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *linear(f"{_HF_BLOCK}.mlp.weights_in", "blocks.{i}.mlp.w12"),
        *linear(f"{_HF_BLOCK}.mlp.weights_out", "blocks.{i}.mlp.w3"),
        *same(f"{_HF_BLOCK}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
        *norm("layernorm", "norm"),
    ),
    ignored=(
        Ignored("classifier.", "the classifier of the 1000 ImageNet classes"),
        Ignored(
            "embeddings.mask_token",
            "stands for masked patches in pre-training alone",
            zeros=lambda arch: (1, arch.width),
        ),
    ),
    prefixes=("", "dinov2.", "dinov2_with_registers."),
    publishers=("hf",),
)

# No mask token, SwiGLU under the names of a plain MLP, and with registers no position for [cls],
# which has it added already.
TIMM = Layout(
    name="dinov2_timm",
    title="DINOv2 of timm",
    family=DINOv2,
    rules=(
        # Before the next two, which hold where there are no registers.
        Rule(
            ("cls_token", "reg_token", "pos_embed"),
            ("cls_token", "register_tokens", "pos_embed"),
            UNFOLD_CLS_POSITION,
        ),
        *same("cls_token"),
        *same("pos_embed"),
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *same("blocks.{i}.ls1.gamma"),
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.w12"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.w3"),
        *same("blocks.{i}.ls2.gamma"),
        *norm("norm", "norm"),
    ),
    ignored=(Ignored("head.", "a classifier: published files have none"),),
    publishers=("timm",),
    head=Head("head"),
)
