"""Swin as transformers writes it to disk (`SwinModel`, `SwinForImageClassification`).

The names in memory differ from transformers 5 on; `save_pretrained` still writes these.
"""

from fmi_jax.models.swin import Swin
from weights_convert.engine import Head, Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import LINEAR, SAME, Fuse

_HERE, _THERE = "encoder.layers.{i}.blocks.{j}", "blocks.{i}.blocks.{j}"
_QKV = tuple(f"{_HERE}.attention.self.{part}" for part in ("query", "key", "value"))
# The file has the patch merging of a stage at the one before.
_MERGING = "encoder.layers.{before}.downsample"

LAYOUT = Layout(
    name="swin_hf",
    title="Swin of Hugging Face transformers",
    family=Swin,
    rules=(
        *conv2d("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *norm("embeddings.norm", "patch_embed.norm"),
        *norm(f"{_HERE}.layernorm_before", f"{_THERE}.norm1"),
        *same(
            f"{_HERE}.attention.self.relative_position_bias_table",
            f"{_THERE}.attn.relative_position_bias_table",
        ),
        Rule(
            tuple(f"{part}.weight" for part in _QKV),
            (f"{_THERE}.attn.qkv.kernel",),
            Fuse(3, LINEAR),
        ),
        Rule(tuple(f"{part}.bias" for part in _QKV), (f"{_THERE}.attn.qkv.bias",), Fuse(3, SAME)),
        *linear(f"{_HERE}.attention.output.dense", f"{_THERE}.attn.proj"),
        *norm(f"{_HERE}.layernorm_after", f"{_THERE}.norm2"),
        *linear(f"{_HERE}.intermediate.dense", f"{_THERE}.mlp.fc1"),
        *linear(f"{_HERE}.output.dense", f"{_THERE}.mlp.fc2"),
        *norm(f"{_MERGING}.norm", "blocks.{i}.downsample.norm"),
        Rule(
            (f"{_MERGING}.reduction.weight",), ("blocks.{i}.downsample.reduction.kernel",), LINEAR
        ),
        *norm("layernorm", "norm"),
    ),
    computed={"before": lambda i, _: i - 1},
    ignored=(
        Ignored("classifier.", "the classifier of the ImageNet classes"),
        Ignored(
            f"{_HERE}.attention.self.relative_position_index", "follows from the window's size"
        ),
    ),
    prefixes=("", "swin."),
    publishers=("hf",),
    head=Head("classifier", prefix="swin."),
)
