"""DeiT and DINO as Facebook Research published them; timm kept every name.

Sources: `vision_transformer.py` of facebookresearch/dino, timm's `VisionTransformer` and
`VisionTransformerDistilled`.
"""

from fmi_jax.models.deit import DeiT
from weights_convert.engine import Head, Ignored, Layout, conv2d, linear, norm, same

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
