"""DeiT and DINO as transformers writes them to disk.

Plain ones are a `ViTModel` or `ViTForImageClassification`; a distilled DeiT is a `DeiTModel`,
`DeiTForImageClassification` or `DeiTForImageClassificationWithTeacher`. The names in memory
differ from transformers 5 on; `save_pretrained` still writes these.
"""

from fmi_jax.models.deit import DeiT
from weights_convert.engine import Head, Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import LINEAR, SAME, Fuse

_BLOCK = "encoder.layer.{i}"
_QKV = tuple(f"{_BLOCK}.attention.attention.{part}" for part in ("query", "key", "value"))

LAYOUT = Layout(
    name="deit_hf",
    title="DeiT and DINO of Hugging Face transformers",
    family=DeiT,
    rules=(
        *same("embeddings.cls_token", "cls_token"),
        *same("embeddings.distillation_token", "dist_token"),
        *same("embeddings.position_embeddings", "pos_embed"),
        *conv2d("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *norm(f"{_BLOCK}.layernorm_before", "blocks.{i}.norm1"),
        Rule(
            tuple(f"{part}.weight" for part in _QKV),
            ("blocks.{i}.attn.qkv.kernel",),
            Fuse(3, LINEAR),
        ),
        Rule(tuple(f"{part}.bias" for part in _QKV), ("blocks.{i}.attn.qkv.bias",), Fuse(3, SAME)),
        *linear(f"{_BLOCK}.attention.output.dense", "blocks.{i}.attn.proj"),
        *norm(f"{_BLOCK}.layernorm_after", "blocks.{i}.norm2"),
        *linear(f"{_BLOCK}.intermediate.dense", "blocks.{i}.mlp.fc1"),
        *linear(f"{_BLOCK}.output.dense", "blocks.{i}.mlp.fc2"),
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
