"""The image encoder of Segment Anything as Facebook Research published it.

Source: `modeling/image_encoder.py` of facebookresearch/segment-anything.
"""

from fmi_jax.models.sam import SAM
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import CONV2D

LAYOUT = Layout(
    name="sam",
    title="Segment Anything as published",
    family=SAM,
    rules=(
        *same("pos_embed"),
        *conv2d("patch_embed.proj", "patch_embed.proj"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *same("blocks.{i}.attn.rel_pos_h"),
        *same("blocks.{i}.attn.rel_pos_w"),
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *linear("blocks.{i}.mlp.lin1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.lin2", "blocks.{i}.mlp.fc2"),
        Rule(("neck.0.weight",), ("neck.conv1.kernel",), CONV2D),
        *norm("neck.1", "neck.norm1"),
        Rule(("neck.2.weight",), ("neck.conv2.kernel",), CONV2D),
        *norm("neck.3", "neck.norm2"),
    ),
    ignored=(
        Ignored("prompt_encoder.", "reads points, boxes and masks, not the image"),
        Ignored("mask_decoder.", "draws masks from the image's embedding"),
    ),
    prefixes=("image_encoder.", ""),
)
