"""DINOv2 as Facebook Research published it, without and with registers, SwiGLU in ViT-g.

Source: `dinov2/models/vision_transformer.py` of facebookresearch/dinov2.
"""

from fmi_jax.models.dinov2 import DINOv2
from weights_convert.engine import Ignored, Layout, conv2d, linear, norm, same

LAYOUT = Layout(
    name="dinov2",
    title="DINOv2 as published",
    family=DINOv2,
    rules=(
        *same("cls_token"),
        *same("pos_embed"),
        *same("register_tokens"),
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *same("blocks.{i}.ls1.gamma"),
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *linear("blocks.{i}.mlp.w12", "blocks.{i}.mlp.w12"),
        *linear("blocks.{i}.mlp.w3", "blocks.{i}.mlp.w3"),
        *same("blocks.{i}.ls2.gamma"),
        *norm("norm", "norm"),
    ),
    ignored=(
        Ignored(
            "mask_token",
            "stands for masked patches in pre-training alone",
            zeros=lambda arch: (1, arch.width),
        ),
    ),
)
