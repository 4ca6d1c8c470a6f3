"""FocalNet as transformers writes it to disk: `FocalNetModel` and its classifier."""

from fmi_jax.models.focalnet import FocalNet
from weights_convert.engine import Head, Ignored, Layout, conv2d, linear, norm, same
from weights_convert.ops import POINTWISE

_BLOCK = "encoder.stages.{i}.layers.{j}"
_NATIVE = "blocks.{i}.blocks.{j}"

LAYOUT = Layout(
    name="focalnet_hf",
    title="FocalNet of Hugging Face transformers",
    family=FocalNet,
    publishers=("hf",),
    rules=(
        *conv2d("embeddings.patch_embeddings.projection", "stem.proj"),
        *norm("embeddings.norm", "stem.norm"),
        *norm(f"{_BLOCK}.norm1", f"{_NATIVE}.norm1"),
        *norm(f"{_BLOCK}.norm1", f"{_NATIVE}.norm1_post"),
        *linear(f"{_BLOCK}.modulation.projection_in", f"{_NATIVE}.modulation.f"),
        *conv2d(
            f"{_BLOCK}.modulation.focal_layers.{{k}}.0", f"{_NATIVE}.modulation.focal_layers.{{k}}"
        ),
        *linear(f"{_BLOCK}.modulation.projection_context", f"{_NATIVE}.modulation.h", POINTWISE),
        *norm(f"{_BLOCK}.modulation.layernorm", f"{_NATIVE}.modulation.norm"),
        *linear(f"{_BLOCK}.modulation.projection_out", f"{_NATIVE}.modulation.proj"),
        *same(f"{_BLOCK}.gamma_1", f"{_NATIVE}.ls1.gamma"),
        *norm(f"{_BLOCK}.norm2", f"{_NATIVE}.norm2"),
        *norm(f"{_BLOCK}.norm2", f"{_NATIVE}.norm2_post"),
        *linear(f"{_BLOCK}.mlp.fc1", f"{_NATIVE}.mlp.fc1"),
        *linear(f"{_BLOCK}.mlp.fc2", f"{_NATIVE}.mlp.fc2"),
        *same(f"{_BLOCK}.gamma_2", f"{_NATIVE}.ls2.gamma"),
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
