"""FocalNet in timm, where every linear layer is a 1x1 convolution and a norm that follows its
branch has a name of its own.

Source: timm's `focalnet.py`.
"""

from fmi_jax.models.focalnet import FocalNet
from weights_convert.engine import Head, Ignored, Layout, conv2d, linear, norm, same
from weights_convert.ops import POINTWISE

_BLOCK = "layers.{i}.blocks.{j}"
_NATIVE = "blocks.{i}.blocks.{j}"

LAYOUT = Layout(
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
