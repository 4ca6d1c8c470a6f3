"""ConvNeXt as published, as DINOv3 publishes it, in timm, and as transformers writes both to disk.

Sources: `models/convnext.py` of facebookresearch/ConvNeXt, `dinov3/models/convnext.py` of
facebookresearch/dinov3, timm's `convnext.py`, transformers' `convnext` and `dinov3_convnext`.
"""

import dataclasses

from fmi_jax.models.convnext import ConvNeXt
from weights_convert.engine import Head, Ignored, Layout, Rule, conv2d, linear, norm, same
from weights_convert.ops import LINEAR, POINTWISE, SAME_TWICE, Op

_NATIVE = "blocks.{i}.blocks.{j}"


def _block(
    block: str, conv: str, branch_norm: str, fc1: str, fc2: str, gamma: str, op: Op = LINEAR
) -> tuple[Rule, ...]:
    """The rules for the residual blocks, from the names of a block and of its parts."""
    return (
        *conv2d(f"{block}.{conv}", f"{_NATIVE}.conv_dw"),
        *norm(f"{block}.{branch_norm}", f"{_NATIVE}.norm"),
        *linear(f"{block}.{fc1}", f"{_NATIVE}.mlp.fc1", op),
        *linear(f"{block}.{fc2}", f"{_NATIVE}.mlp.fc2", op),
        *same(f"{block}.{gamma}", f"{_NATIVE}.ls.gamma"),
    )


def _maps(stem: str, stem_norm: str, downsample: str) -> tuple[Rule, ...]:
    """The rules for the stem and for what leads to the later stages."""
    return (
        *conv2d(stem, "stem.proj"),
        *norm(stem_norm, "stem.norm"),
        *norm(f"{downsample}.0", "blocks.{i}.downsample.pre_norm"),
        *conv2d(f"{downsample}.1", "blocks.{i}.downsample.proj"),
    )


_CLASSES = "the classifier of the ImageNet classes"
_PUBLISHED = (
    *_maps("downsample_layers.0.0", "downsample_layers.0.1", "downsample_layers.{i}"),
    *_block("stages.{i}.{j}", "dwconv", "norm", "pwconv1", "pwconv2", "gamma"),
)

LAYOUT = Layout(
    name="convnext",
    title="ConvNeXt as published",
    family=ConvNeXt,
    rules=(*_PUBLISHED, *norm("norm", "norm")),
    ignored=(Ignored("head.", _CLASSES),),
    wrappers=("model", ""),
    head=Head("head"),
)

# Its files have the last norm twice: the network lists it among the norms of its stages, too.
DINOV3 = Layout(
    name="convnext_dinov3",
    title="ConvNeXt of DINOv3 as published",
    family=ConvNeXt,
    rules=(
        *_PUBLISHED,
        Rule(("norm.weight", "norms.3.weight"), ("norm.scale",), SAME_TWICE),
        Rule(("norm.bias", "norms.3.bias"), ("norm.bias",), SAME_TWICE),
    ),
)


def _timm(op: Op) -> tuple[Rule, ...]:
    return (
        *_maps("stem.0", "stem.1", "stages.{i}.downsample"),
        *_block("stages.{i}.blocks.{j}", "conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma", op),
        *norm("head.norm", "norm"),
    )


TIMM = Layout(
    name="convnext_timm",
    title="ConvNeXt of timm",
    family=ConvNeXt,
    rules=_timm(LINEAR),
    ignored=(Ignored("head.fc.", _CLASSES),),
    publishers=("timm",),
    head=Head("head.fc"),
)

# `conv_mlp=True`
TIMM_POINTWISE = dataclasses.replace(
    TIMM,
    name="convnext_timm_pointwise",
    title="ConvNeXt of timm with 1x1 convolutions for linear layers",
    rules=_timm(POINTWISE),
    publishers=(),
)

# A `ConvNextModel` or `ConvNextForImageClassification`. Its last norm has an epsilon of 1e-12
# unless its config says 1e-6, as published.
_STAGE = "encoder.stages.{i}"

HF = Layout(
    name="convnext_hf",
    title="ConvNeXt of Hugging Face transformers",
    family=ConvNeXt,
    rules=(
        *_maps(
            "embeddings.patch_embeddings", "embeddings.layernorm", f"{_STAGE}.downsampling_layer"
        ),
        *_block(
            f"{_STAGE}.layers.{{j}}",
            *("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
        ),
        *norm("layernorm", "norm"),
    ),
    ignored=(Ignored("classifier.", _CLASSES),),
    prefixes=("", "convnext."),
    publishers=("hf",),
    head=Head("classifier", prefix="convnext."),
)

# A `DINOv3ConvNextModel`. The names in memory differ; `save_pretrained` writes these.
DINOV3_HF = Layout(
    name="convnext_dinov3_hf",
    title="ConvNeXt of DINOv3 of Hugging Face transformers",
    family=ConvNeXt,
    rules=(
        *_maps(
            "stages.0.downsample_layers.0",
            "stages.0.downsample_layers.1",
            "stages.{i}.downsample_layers",
        ),
        *_block(
            "stages.{i}.layers.{j}",
            *("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2", "gamma"),
        ),
        *norm("layer_norm", "norm"),
    ),
    publishers=("hf",),
)
