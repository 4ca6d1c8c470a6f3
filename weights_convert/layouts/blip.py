"""BLIP as Salesforce published it, the image encoder or its momentum copy in the same file, and
as transformers writes it to disk.

Source: `models/blip_pretrain.py`, `models/blip.py` and `models/blip_retrieval.py` of
salesforce/BLIP. Pre-training keeps a moving average of the encoder beside it. The study takes
every key that starts with `visual_encoder` and strips the first component, so that the average,
which comes later in the file, overwrites the encoder itself.
"""

from fmi_jax.models.blip import BLIP
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same


def _rules(encoder: str) -> tuple[Rule, ...]:
    """Make the rules for an image encoder under that prefix."""
    block = f"{encoder}blocks.{{i}}"
    return (
        *same(f"{encoder}cls_token", "cls_token"),
        *same(f"{encoder}pos_embed", "pos_embed"),
        *conv2d(f"{encoder}patch_embed.proj", "patch_embed.proj"),
        *norm(f"{block}.norm1", "blocks.{i}.norm1"),
        *linear(f"{block}.attn.qkv", "blocks.{i}.attn.qkv"),
        *linear(f"{block}.attn.proj", "blocks.{i}.attn.proj"),
        *norm(f"{block}.norm2", "blocks.{i}.norm2"),
        *linear(f"{block}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{block}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm(f"{encoder}norm", "norm"),
    )


_TEXT = "reads or writes text: this is a backbone for images"
_LOSS = "belongs to the losses of pre-training"

_OTHERS = (
    Ignored("text_encoder.", _TEXT),
    Ignored("text_encoder_m.", _TEXT),
    Ignored("text_decoder.", _TEXT),
    Ignored("vision_proj.", _LOSS),
    Ignored("vision_proj_m.", _LOSS),
    Ignored("text_proj.", _LOSS),
    Ignored("text_proj_m.", _LOSS),
    Ignored("itm_head.", _LOSS),
    Ignored("image_queue", _LOSS),
    Ignored("text_queue", _LOSS),
    Ignored("queue_ptr", _LOSS),
    Ignored("idx_queue", _LOSS),
    Ignored("ptr_queue", _LOSS),
    Ignored("temp", _LOSS),
)

LAYOUT = Layout(
    name="blip",
    title="BLIP as published",
    family=BLIP,
    rules=_rules(""),
    ignored=(
        *_OTHERS,
        Ignored("visual_encoder_m.", "the encoder's moving average: layout blip_momentum"),
    ),
    wrappers=("model", ""),
    prefixes=("visual_encoder.", ""),
)

MOMENTUM = Layout(
    name="blip_momentum",
    title="BLIP as published, the moving average of its image encoder",
    family=BLIP,
    rules=_rules("visual_encoder_m."),
    ignored=(*_OTHERS, Ignored("visual_encoder.", "the encoder itself: layout blip")),
    wrappers=("model", ""),
    publishers=(),
)

# A `BlipVisionModel`, by itself or within the larger models.
_HF_BLOCK = "encoder.layers.{i}"
_PAIRS = "compares images with texts"

HF = Layout(
    name="blip_hf",
    title="BLIP of Hugging Face transformers",
    family=BLIP,
    rules=(
        *same("embeddings.class_embedding", "cls_token"),
        *same("embeddings.position_embedding", "pos_embed"),
        *conv2d("embeddings.patch_embedding", "patch_embed.proj"),
        *norm(f"{_HF_BLOCK}.layer_norm1", "blocks.{i}.norm1"),
        *linear(f"{_HF_BLOCK}.self_attn.qkv", "blocks.{i}.attn.qkv"),
        *linear(f"{_HF_BLOCK}.self_attn.projection", "blocks.{i}.attn.proj"),
        *norm(f"{_HF_BLOCK}.layer_norm2", "blocks.{i}.norm2"),
        *linear(f"{_HF_BLOCK}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{_HF_BLOCK}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *norm("post_layernorm", "norm"),
    ),
    ignored=(
        Ignored("text_model.", _TEXT),
        Ignored("text_encoder.", _TEXT),
        Ignored("text_decoder.", _TEXT),
        Ignored("visual_projection.", _PAIRS),
        Ignored("text_projection.", _PAIRS),
        Ignored("vision_proj.", _PAIRS),
        Ignored("text_proj.", _PAIRS),
        Ignored("itm_head.", _PAIRS),
        Ignored("logit_scale", _PAIRS),
    ),
    prefixes=("", "vision_model."),
    publishers=("hf",),
)
