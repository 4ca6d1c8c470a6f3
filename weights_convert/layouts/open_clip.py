"""CLIP as open_clip publishes it: an image and a text tower, of which the former is read.

Source: `open_clip.model.CLIP` and `open_clip.transformer.VisionTransformer`.
"""

from fmi_jax.models.open_clip import OpenCLIP
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import LINEAR

_BLOCK = "transformer.resblocks.{i}"
_TEXT = "the text tower: this is a backbone for images"
_SETTING = "a setting of the whole model"

LAYOUT = Layout(
    name="open_clip",
    title="CLIP as open_clip publishes it",
    family=OpenCLIP,
    rules=(
        *same("class_embedding", "cls_token"),
        *same("positional_embedding", "pos_embed"),
        *conv2d("conv1", "patch_embed.proj")[:1],  # it has no bias
        *norm("ln_pre", "norm_pre"),
        *norm(f"{_BLOCK}.ln_1", "blocks.{i}.norm1"),
        Rule((f"{_BLOCK}.attn.in_proj_weight",), ("blocks.{i}.attn.qkv.kernel",), LINEAR),
        *same(f"{_BLOCK}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias"),
        *linear(f"{_BLOCK}.attn.out_proj", "blocks.{i}.attn.proj"),
        *norm(f"{_BLOCK}.ln_2", "blocks.{i}.norm2"),
        *linear(f"{_BLOCK}.mlp.c_fc", "blocks.{i}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.c_proj", "blocks.{i}.mlp.fc2"),
        *norm("ln_post", "norm"),
        *same("proj"),
    ),
    # Not under "visual.", where blocks too many would have such names.
    beside=(
        Ignored("positional_embedding", _TEXT),
        Ignored("text_projection", _TEXT),
        Ignored("token_embedding.", _TEXT),
        Ignored("transformer.", _TEXT),
        Ignored("ln_final.", _TEXT),
        Ignored("logit_scale", "the temperature of the contrastive loss"),
        # In the TorchScript files of OpenAI alone.
        Ignored("input_resolution", _SETTING),
        Ignored("context_length", _SETTING),
        Ignored("vocab_size", _SETTING),
    ),
    prefixes=("visual.", ""),
)
