"""The image backbone inside a released SEEM checkpoint.

Source: `modeling/vision/backbone/focal_dw.py` of the SEEM repository, which the study strips of
the prefix and loads into its copy.
"""

from fmi_jax.models.seem import SEEM
from weights_convert.engine import Ignored, Layout, conv2d, linear, norm, same
from weights_convert.ops import POINTWISE

_BLOCK = "layers.{i}.blocks.{j}"
_NATIVE = "blocks.{i}.blocks.{j}"

LAYOUT = Layout(
    name="seem",
    title="SEEM as published",
    family=SEEM,
    rules=(
        *conv2d("patch_embed.proj", "stem.proj"),
        *norm("patch_embed.norm", "stem.norm"),
        *conv2d(f"{_BLOCK}.dw1", f"{_NATIVE}.dw1"),
        *linear(f"{_BLOCK}.modulation.f", f"{_NATIVE}.modulation.f"),
        *conv2d(
            f"{_BLOCK}.modulation.focal_layers.{{k}}.0", f"{_NATIVE}.modulation.focal_layers.{{k}}"
        ),
        *linear(f"{_BLOCK}.modulation.h", f"{_NATIVE}.modulation.h", POINTWISE),
        *norm(f"{_BLOCK}.modulation.ln", f"{_NATIVE}.modulation.norm"),
        *linear(f"{_BLOCK}.modulation.proj", f"{_NATIVE}.modulation.proj"),
        *same(f"{_BLOCK}.gamma_1", f"{_NATIVE}.ls1.gamma"),
        *norm(f"{_BLOCK}.norm1", f"{_NATIVE}.norm1"),
        *conv2d(f"{_BLOCK}.dw2", f"{_NATIVE}.dw2"),
        *linear(f"{_BLOCK}.mlp.fc1", f"{_NATIVE}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.fc2", f"{_NATIVE}.mlp.fc2"),
        *same(f"{_BLOCK}.gamma_2", f"{_NATIVE}.ls2.gamma"),
        *norm(f"{_BLOCK}.norm2", f"{_NATIVE}.norm2"),
        # A down-sampling is part of the stage before it.
        *conv2d("layers.{before}.downsample.proj", "blocks.{i}.downsample.proj"),
        *norm("layers.{before}.downsample.norm", "blocks.{i}.downsample.norm"),
        *norm("norm{i}", "norms.{i}"),
    ),
    computed={"before": lambda i, _: i - 1},
    ignored=(
        Ignored("sem_seg_head.", "the decoder of masks and the encoder of prompts"),
        Ignored("criterion.", "weights of the terms of the training loss"),
    ),
    prefixes=("backbone.", ""),
)
