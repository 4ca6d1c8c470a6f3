"""The image tower of CLIP in timm (`vit_base_patch16_clip_224.laion2b` and its like).

timm reads the projection as a classifier, whose bias is zero.
"""

from fmi_jax.models.open_clip import OpenCLIP
from weights_convert.engine import Layout, Rule, conv2d, linear, norm
from weights_convert.ops import DropAxes, LinearWithZeroBias

LAYOUT = Layout(
    name="open_clip_timm",
    title="CLIP of timm",
    family=OpenCLIP,
    rules=(
        Rule(("cls_token",), ("cls_token",), DropAxes(2)),
        Rule(("pos_embed",), ("pos_embed",), DropAxes(1)),
        *conv2d("patch_embed.proj", "patch_embed.proj")[:1],  # it has no bias
        *norm("norm_pre", "norm_pre"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm("norm", "norm"),
        Rule(("head.weight", "head.bias"), ("proj",), LinearWithZeroBias()),
    ),
    publishers=("timm",),
)
