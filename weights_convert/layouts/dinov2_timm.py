"""DINOv2 in timm: no mask token, SwiGLU under the names of a plain MLP, and with registers no
position for [cls], which has it added already.

Source: timm's `vision_transformer.py` (`_convert_dinov2`, `no_embed_class`).
"""

from fmi_jax.models.dinov2 import DINOv2
from weights_convert.engine import Head, Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import UnfoldClsPosition

LAYOUT = Layout(
    name="dinov2_timm",
    title="DINOv2 of timm",
    family=DINOv2,
    rules=(
        # Before the next two, which hold where there are no registers.
        Rule(
            ("cls_token", "reg_token", "pos_embed"),
            ("cls_token", "register_tokens", "pos_embed"),
            UnfoldClsPosition(),
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
