"""The image encoder of Segment Anything as Facebook Research published it, as transformers writes
it to disk, and in timm.

Sources: `modeling/image_encoder.py` of facebookresearch/segment-anything, timm's
`vision_transformer_sam.py`.
"""

from fmi_jax.models.sam import SAM
from weights_convert.engine import Ignored, Layout, conv2d, linear, norm, same

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
        *conv2d("neck.0", "neck.conv1", bias=False),
        *norm("neck.1", "neck.norm1"),
        *conv2d("neck.2", "neck.conv2", bias=False),
        *norm("neck.3", "neck.norm2"),
    ),
    ignored=(
        Ignored("prompt_encoder.", "reads points, boxes and masks, not the image"),
        Ignored("mask_decoder.", "draws masks from the image's embedding"),
    ),
    prefixes=("image_encoder.", ""),
)

# A `SamModel` or `SamVisionModel`.
HF = Layout(
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
        *conv2d("neck.conv1", "neck.conv1", bias=False),
        *norm("neck.layer_norm1", "neck.norm1"),
        *conv2d("neck.conv2", "neck.conv2", bias=False),
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

TIMM = Layout(
    name="sam_timm",
    title="Segment Anything of timm",
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
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *conv2d("neck.0", "neck.conv1", bias=False),
        *norm("neck.1", "neck.norm1"),
        *conv2d("neck.2", "neck.conv2", bias=False),
        *norm("neck.3", "neck.norm2"),
    ),
    publishers=("timm",),
)
