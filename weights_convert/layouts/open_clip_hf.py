"""CLIP as transformers writes it to disk (`CLIPModel`, `CLIPVisionModelWithProjection`)."""

from fmi_jax.models.open_clip import OpenCLIP
from weights_convert.engine import Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import LINEAR, SAME, Fuse

_BLOCK = "vision_model.encoder.layers.{i}"
_QKV = tuple(f"{_BLOCK}.self_attn.{part}_proj" for part in "qkv")
_TEXT = "the text tower: this is a backbone for images"

LAYOUT = Layout(
    name="open_clip_hf",
    title="CLIP of Hugging Face transformers",
    family=OpenCLIP,
    rules=(
        *same("vision_model.embeddings.class_embedding", "cls_token"),
        *same("vision_model.embeddings.position_embedding.weight", "pos_embed"),
        *conv2d("vision_model.embeddings.patch_embedding", "patch_embed.proj")[:1],  # no bias
        *norm("vision_model.pre_layrnorm", "norm_pre"),  # spelled so there
        *norm(f"{_BLOCK}.layer_norm1", "blocks.{i}.norm1"),
        Rule(
            tuple(f"{part}.weight" for part in _QKV),
            ("blocks.{i}.attn.qkv.kernel",),
            Fuse(3, LINEAR),
        ),
        Rule(tuple(f"{part}.bias" for part in _QKV), ("blocks.{i}.attn.qkv.bias",), Fuse(3, SAME)),
        *linear(f"{_BLOCK}.self_attn.out_proj", "blocks.{i}.attn.proj"),
        *norm(f"{_BLOCK}.layer_norm2", "blocks.{i}.norm2"),
        *linear(f"{_BLOCK}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.fc2", "blocks.{i}.mlp.fc2"),
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
