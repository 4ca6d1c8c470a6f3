"""FocalNet as Microsoft published it, as transformers writes it to disk, and in timm.

Sources: `classification/focalnet.py` of microsoft/FocalNet, timm's `focalnet.py`.
"""

from fmi_jax.models.focalnet import FocalNet
from weights_convert.engine import Head, Ignored, Layout, conv2d, linear, norm, same
from weights_convert.ops import POINTWISE

_BLOCK = "layers.{i}.blocks.{j}"
_NATIVE = "blocks.{i}.blocks.{j}"

LAYOUT = Layout(
    name="focalnet",
    title="FocalNet as published",
    family=FocalNet,
    rules=(
        *conv2d("patch_embed.proj", "stem.proj"),
        *norm("patch_embed.norm", "stem.norm"),
        *norm(f"{_BLOCK}.norm1", f"{_NATIVE}.norm1"),
        *norm(f"{_BLOCK}.norm1", f"{_NATIVE}.norm1_post"),
        *linear(f"{_BLOCK}.modulation.f", f"{_NATIVE}.modulation.f"),
        *conv2d(
            f"{_BLOCK}.modulation.focal_layers.{{k}}.0", f"{_NATIVE}.modulation.focal_layers.{{k}}"
        ),
        *linear(f"{_BLOCK}.modulation.h", f"{_NATIVE}.modulation.h", POINTWISE),
        *norm(f"{_BLOCK}.modulation.ln", f"{_NATIVE}.modulation.norm"),
        *linear(f"{_BLOCK}.modulation.proj", f"{_NATIVE}.modulation.proj"),
        *same(f"{_BLOCK}.gamma_1", f"{_NATIVE}.ls1.gamma"),
        *norm(f"{_BLOCK}.norm2", f"{_NATIVE}.norm2"),
        *norm(f"{_BLOCK}.norm2", f"{_NATIVE}.norm2_post"),
        *linear(f"{_BLOCK}.mlp.fc1", f"{_NATIVE}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.fc2", f"{_NATIVE}.mlp.fc2"),
        *same(f"{_BLOCK}.gamma_2", f"{_NATIVE}.ls2.gamma"),
        # A down-sampling is part of the stage before it.
        *conv2d("layers.{before}.downsample.proj", "blocks.{i}.downsample.proj"),
        *norm("layers.{before}.downsample.norm", "blocks.{i}.downsample.norm"),
        *norm("norm", "norm"),
    ),
    computed={"before": lambda i, _: i - 1},
    ignored=(Ignored("head.", "the classifier of the ImageNet classes"),),
    wrappers=("model", ""),
    head=Head("head"),
)

# A `FocalNetModel` or its classifier.
_HF_BLOCK = "encoder.stages.{i}.layers.{j}"

HF = Layout(
    name="focalnet_hf",
    title="FocalNet of Hugging Face transformers",
    family=FocalNet,
    publishers=("hf",),
    rules=(
        *conv2d("embeddings.patch_embeddings.projection", "stem.proj"),
        *norm("embeddings.norm", "stem.norm"),
        *norm(f"{_HF_BLOCK}.norm1", f"{_NATIVE}.norm1"),
        *norm(f"{_HF_BLOCK}.norm1", f"{_NATIVE}.norm1_post"),
        *linear(f"{_HF_BLOCK}.modulation.projection_in", f"{_NATIVE}.modulation.f"),
        *conv2d(
            f"{_HF_BLOCK}.modulation.focal_layers.{{k}}.0",
            f"{_NATIVE}.modulation.focal_layers.{{k}}",
        ),
        *linear(f"{_HF_BLOCK}.modulation.projection_context", f"{_NATIVE}.modulation.h", POINTWISE),
        *norm(f"{_HF_BLOCK}.modulation.layernorm", f"{_NATIVE}.modulation.norm"),
        *linear(f"{_HF_BLOCK}.modulation.projection_out", f"{_NATIVE}.modulation.proj"),
        *same(f"{_HF_BLOCK}.gamma_1", f"{_NATIVE}.ls1.gamma"),
        *norm(f"{_HF_BLOCK}.norm2", f"{_NATIVE}.norm2"),
        *norm(f"{_HF_BLOCK}.norm2", f"{_NATIVE}.norm2_post"),
        *linear(f"{_HF_BLOCK}.mlp.fc1", f"{_NATIVE}.mlp.fc1"),
        *linear(f"{_HF_BLOCK}.mlp.fc2", f"{_NATIVE}.mlp.fc2"),
        *same(f"{_HF_BLOCK}.gamma_2", f"{_NATIVE}.ls2.gamma"),
        # A down-sampling is part of the stage before it.
        *conv2d("encoder.stages.{before}.downsample.projection", "blocks.{i}.downsample.proj"),
        *norm("encoder.stages.{before}.downsample.norm", "blocks.{i}.downsample.norm"),
        *norm("layernorm", "norm"),
    ),
    computed={"before": lambda i, _: i - 1},
    ignored=(Ignored("classifier.", "the classifier of the ImageNet classes"),),
    prefixes=("", "focalnet."),
    head=Head("classifier", prefix="focalnet."),
)

# Every linear layer is a 1x1 convolution, and a norm that follows its branch has a name of its own.
TIMM = Layout(
    name="focalnet_timm",
    title="FocalNet of timm",
    family=FocalNet,
    publishers=("timm",),
    rules=(
        *conv2d("stem.proj", "stem.proj"),
        *norm("stem.norm", "stem.norm"),
        *conv2d("layers.{i}.downsample.proj", "blocks.{i}.downsample.proj"),
        *norm("layers.{i}.downsample.norm", "blocks.{i}.downsample.norm"),
        *norm(f"{_BLOCK}.norm1", f"{_NATIVE}.norm1"),
        *linear(f"{_BLOCK}.modulation.f", f"{_NATIVE}.modulation.f", POINTWISE),
        *conv2d(
            f"{_BLOCK}.modulation.focal_layers.{{k}}.0", f"{_NATIVE}.modulation.focal_layers.{{k}}"
        ),
        *linear(f"{_BLOCK}.modulation.h", f"{_NATIVE}.modulation.h", POINTWISE),
        *norm(f"{_BLOCK}.modulation.norm", f"{_NATIVE}.modulation.norm"),
        *linear(f"{_BLOCK}.modulation.proj", f"{_NATIVE}.modulation.proj", POINTWISE),
        *norm(f"{_BLOCK}.norm1_post", f"{_NATIVE}.norm1_post"),
        *same(f"{_BLOCK}.ls1.gamma", f"{_NATIVE}.ls1.gamma"),
        *norm(f"{_BLOCK}.norm2", f"{_NATIVE}.norm2"),
        *linear(f"{_BLOCK}.mlp.fc1", f"{_NATIVE}.mlp.fc1", POINTWISE),
        *linear(f"{_BLOCK}.mlp.fc2", f"{_NATIVE}.mlp.fc2", POINTWISE),
        *norm(f"{_BLOCK}.norm2_post", f"{_NATIVE}.norm2_post"),
        *same(f"{_BLOCK}.ls2.gamma", f"{_NATIVE}.ls2.gamma"),
        *norm("norm", "norm"),
    ),
    ignored=(Ignored("head.", "the classifier of the ImageNet classes"),),
    head=Head("head.fc"),
)
