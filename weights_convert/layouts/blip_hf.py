"""BLIP as transformers writes it to disk (`BlipVisionModel`, and within the larger models)."""

from fmi_jax.models.blip import BLIP
from weights_convert.engine import Ignored, Layout, conv2d, linear, norm, same

_BLOCK = "encoder.layers.{i}"
_TEXT = "reads or writes text: this is a backbone for images"
_LOSS = "compares images with texts"

LAYOUT = Layout(
    name="blip_hf",
    title="BLIP of Hugging Face transformers",
    family=BLIP,
    rules=(
        *same("embeddings.class_embedding", "cls_token"),
        *same("embeddings.position_embedding", "pos_embed"),
        *conv2d("embeddings.patch_embedding", "patch_embed.proj"),
        *norm(f"{_BLOCK}.layer_norm1", "blocks.{i}.norm1"),
        *linear(f"{_BLOCK}.self_attn.qkv", "blocks.{i}.attn.qkv"),
        *linear(f"{_BLOCK}.self_attn.projection", "blocks.{i}.attn.proj"),
        *norm(f"{_BLOCK}.layer_norm2", "blocks.{i}.norm2"),
        *linear(f"{_BLOCK}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm("post_layernorm", "norm"),
    ),
    ignored=(
        Ignored("text_model.", _TEXT),
        Ignored("text_encoder.", _TEXT),
        Ignored("text_decoder.", _TEXT),
        Ignored("visual_projection.", _LOSS),
        Ignored("text_projection.", _LOSS),
        Ignored("vision_proj.", _LOSS),
        Ignored("text_proj.", _LOSS),
        Ignored("itm_head.", _LOSS),
        Ignored("logit_scale", _LOSS),
    ),
    prefixes=("", "vision_model."),
    publishers=("hf",),
)
