"""CLIP as open_clip publishes it, as transformers writes it to disk, and in timm. Of an image and
a text tower the former is read.

Source: `open_clip.model.CLIP` and `open_clip.transformer.VisionTransformer`.
"""

from fmi_jax.models.open_clip import OpenCLIP
from weights_convert.engine import Ignored, Layout, Rule, conv2d, fused, linear, norm, same
from weights_convert.ops import LINEAR, LINEAR_WITH_ZERO_BIAS, drop_axes

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
        *conv2d("conv1", "patch_embed.proj", bias=False),
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

# A `CLIPModel` or `CLIPVisionModelWithProjection`.
_HF_BLOCK = "vision_model.encoder.layers.{i}"
_QKV = tuple(f"{_HF_BLOCK}.self_attn.{part}_proj" for part in "qkv")

HF = Layout(
    name="open_clip_hf",
    title="CLIP of Hugging Face transformers",
    family=OpenCLIP,
    rules=(
        *same("vision_model.embeddings.class_embedding", "cls_token"),
        *same("vision_model.embeddings.position_embedding.weight", "pos_embed"),
        *conv2d("vision_model.embeddings.patch_embedding", "patch_embed.proj", bias=False),
        *norm("vision_model.pre_layrnorm", "norm_pre"),  # spelled so there
        *norm(f"{_HF_BLOCK}.layer_norm1", "blocks.{i}.norm1"),
        *fused(_QKV, "blocks.{i}.attn.qkv"),
        *linear(f"{_HF_BLOCK}.self_attn.out_proj", "blocks.{i}.attn.proj"),
        *norm(f"{_HF_BLOCK}.layer_norm2", "blocks.{i}.norm2"),
        *linear(f"{_HF_BLOCK}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{_HF_BLOCK}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm("vision_model.post_layernorm", "norm"),
        Rule(("visual_projection.weight",), ("proj",), LINEAR),
    ),
    ignored=(
        Ignored("vision_model.embeddings.position_ids", "0, 1, 2, ... in older files"),
        Ignored("text_model.", _TEXT),
        Ignored("text_projection.weight", _TEXT),
        Ignored("logit_scale", "the temperature of the contrastive loss"),
    ),
    publishers=("hf",),
)

# The image tower alone (`vit_base_patch16_clip_224.laion2b` and its like). timm reads the
# projection as a classifier, whose bias is zero.
TIMM = Layout(
    name="open_clip_timm",
    title="CLIP of timm",
    family=OpenCLIP,
    rules=(
        Rule(("cls_token",), ("cls_token",), drop_axes(2)),
        Rule(("pos_embed",), ("pos_embed",), drop_axes(1)),
        *conv2d("patch_embed.proj", "patch_embed.proj", bias=False),
        *norm("norm_pre", "norm_pre"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm("norm", "norm"),
        Rule(("head.weight", "head.bias"), ("proj",), LINEAR_WITH_ZERO_BIAS),
    ),
    publishers=("timm",),
)
