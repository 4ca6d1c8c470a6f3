"""ResNets as transformers writes them (`ResNetModel`, `ResNetForImageClassification`)."""

from fmi_jax.models.resnet import ResNet
from weights_convert.engine import Head, Ignored, Layout, Rule, batch_norm
from weights_convert.ops import CONV2D

_STAGE = "encoder.stages.{s}.layers.{i}"
_NATIVE = "blocks.{s}.{i}"


def _conv_norm(source: str, conv: str, norm: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{source}.convolution.weight",), (f"{conv}.kernel",), CONV2D),
        *batch_norm(f"{source}.normalization", norm),
    )


LAYOUT = Layout(
    name="resnet_hf",
    title="ResNet of Hugging Face transformers",
    family=ResNet,
    rules=(
        *_conv_norm("embedder.embedder", "conv1", "bn1"),
        *_conv_norm(f"{_STAGE}.layer.0", f"{_NATIVE}.conv1", f"{_NATIVE}.bn1"),
        *_conv_norm(f"{_STAGE}.layer.1", f"{_NATIVE}.conv2", f"{_NATIVE}.bn2"),
        *_conv_norm(f"{_STAGE}.layer.2", f"{_NATIVE}.conv3", f"{_NATIVE}.bn3"),
        *_conv_norm(f"{_STAGE}.shortcut", f"{_NATIVE}.downsample.conv", f"{_NATIVE}.downsample.bn"),
    ),
    ignored=(Ignored("classifier.", "the classifier of the 1000 ImageNet classes"),),
    prefixes=("", "resnet."),
    publishers=("hf",),
    head=Head("classifier.1", prefix="resnet."),
)
