"""DeiT and DINO as Facebook Research published them (timm kept every name), and as transformers
writes them to disk.

Sources: `vision_transformer.py` of facebookresearch/dino, timm's `VisionTransformer` and
`VisionTransformerDistilled`.
"""

from fmi_jax.models.deit import DeiT
from weights_convert.engine import Head, Ignored, Layout, conv2d, fused, linear, norm, same

LAYOUT = Layout(
    name="deit",
    title="DeiT and DINO as published, and in timm",
    family=DeiT,
    rules=(
        *same("cls_token"),
        *same("dist_token"),
        *same("pos_embed"),
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm("norm", "norm"),
    ),
    ignored=(
        Ignored("head.", "the classifier of the 1000 ImageNet classes"),
        Ignored("head_dist.", "the same on the distillation token"),
    ),
    wrappers=("", "model", "teacher"),  # "teacher": the full training checkpoints of DINO
    prefixes=("", "backbone."),
    publishers=("original", "timm"),
    head=Head("head", unless="dist_token"),
)

# Plain ones are a `ViTModel` or `ViTForImageClassification`; a distilled DeiT is a `DeiTModel`,
# `DeiTForImageClassification` or `DeiTForImageClassificationWithTeacher`. The names in memory
# differ from transformers 5 on; `save_pretrained` still writes these.
_HF_BLOCK = "encoder.layer.{i}"
_QKV = tuple(f"{_HF_BLOCK}.attention.attention.{part}" for part in ("query", "key", "value"))

HF = Layout(
    name="deit_hf",
    title="DeiT and DINO of Hugging Face transformers",
    family=DeiT,
    rules=(
        *same("embeddings.cls_token", "cls_token"),
        *same("embeddings.distillation_token", "dist_token"),
        *same("embeddings.position_embeddings", "pos_embed"),
        *conv2d("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *norm(f"{_HF_BLOCK}.layernorm_before", "blocks.{i}.norm1"),
        *fused(_QKV, "blocks.{i}.attn.qkv"),
        *linear(f"{_HF_BLOCK}.attention.output.dense", "blocks.{i}.attn.proj"),
        *norm(f"{_HF_BLOCK}.layernorm_after", "blocks.{i}.norm2"),
        *linear(f"{_HF_BLOCK}.intermediate.dense", "blocks.{i}.mlp.fc1"),
        *linear(f"{_HF_BLOCK}.output.dense", "blocks.{i}.mlp.fc2"),
        *norm("layernorm", "norm"),
    ),
    ignored=(
        Ignored("classifier.", "the classifier of the 1000 ImageNet classes"),
        Ignored("cls_classifier.", "the same, of a distilled DeiT"),
        Ignored("distillation_classifier.", "the same on the distillation token"),
        Ignored("pooler.", "a layer of transformers that no DeiT or DINO was trained with"),
    ),
    prefixes=("", "vit.", "deit."),
    publishers=("hf",),
    head=Head("classifier", prefix="vit.", unless="dist_token"),
)
