"""DINOv2 as transformers writes it to disk (`Dinov2Model`, `Dinov2WithRegistersModel`).

The names in memory differ from transformers 5 on; `save_pretrained` still writes these.
"""

from fmi_jax.models.dinov2 import DINOv2
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import LINEAR, SAME, Fuse

_BLOCK = "encoder.layer.{i}"
_QKV = tuple(f"{_BLOCK}.attention.attention.{part}" for part in ("query", "key", "value"))

LAYOUT = Layout(
    name="dinov2_hf",
    title="DINOv2 of Hugging Face transformers",
    family=DINOv2,
    rules=(
        *same("embeddings.cls_token", "cls_token"),
        *same("embeddings.position_embeddings", "pos_embed"),
        *same("embeddings.register_tokens", "register_tokens"),
        *conv2d("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *norm(f"{_BLOCK}.norm1", "blocks.{i}.norm1"),
        Rule(
            tuple(f"{part}.weight" for part in _QKV),
            ("blocks.{i}.attn.qkv.kernel",),
            Fuse(3, LINEAR),
        ),
        Rule(tuple(f"{part}.bias" for part in _QKV), ("blocks.{i}.attn.qkv.bias",), Fuse(3, SAME)),
        *linear(f"{_BLOCK}.attention.output.dense", "blocks.{i}.attn.proj"),
        *same(f"{_BLOCK}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
        *norm(f"{_BLOCK}.norm2", "blocks.{i}.norm2"),
        *linear(f"{_BLOCK}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *linear(f"{_BLOCK}.mlp.weights_in", "blocks.{i}.mlp.w12"),
        *linear(f"{_BLOCK}.mlp.weights_out", "blocks.{i}.mlp.w3"),
        *same(f"{_BLOCK}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
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
