"""The image encoder of Segment Anything as transformers writes it to disk (`SamModel`,
`SamVisionModel`)."""

from fmi_jax.models.sam import SAM
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import CONV2D

LAYOUT = Layout(
    name="sam_hf",
    title="Segment Anything of Hugging Face transformers",
    family=SAM,
    rules=(
        *same("pos_embed"),
        *conv2d("patch_embed.projection", "patch_embed.proj"),
        *norm("layers.{i}.layer_norm1", "blocks.{i}.norm1"),
        *linear("layers.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("layers.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *same("layers.{i}.attn.rel_pos_h", "blocks.{i}.attn.rel_pos_h"),
        *same("layers.{i}.attn.rel_pos_w", "blocks.{i}.attn.rel_pos_w"),
        *norm("layers.{i}.layer_norm2", "blocks.{i}.norm2"),
        *linear("layers.{i}.mlp.lin1", "blocks.{i}.mlp.fc1"),
        *linear("layers.{i}.mlp.lin2", "blocks.{i}.mlp.fc2"),
        Rule(("neck.conv1.weight",), ("neck.conv1.kernel",), CONV2D),
        *norm("neck.layer_norm1", "neck.norm1"),
        Rule(("neck.conv2.weight",), ("neck.conv2.kernel",), CONV2D),
        *norm("neck.layer_norm2", "neck.norm2"),
    ),
    ignored=(
        Ignored("prompt_encoder.", "reads points, boxes and masks, not the image"),
        Ignored("mask_decoder.", "draws masks from the image's embedding"),
        Ignored("shared_image_embedding.", "positions for the mask decoder"),
    ),
    prefixes=("vision_encoder.", ""),
    publishers=("hf",),
)
