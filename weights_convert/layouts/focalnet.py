"""FocalNet as Microsoft published it: a down-sampling is part of the stage before it.

Source: `classification/focalnet.py` of microsoft/FocalNet.
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
