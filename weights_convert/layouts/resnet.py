"""ResNets under the names of torchvision, which timm and nearly every publisher kept.

A file of the second study's zoo is one of these with a prefix, a wrapper or a training head of
its own: one layout for each way of pre-training whose heads must be named. The study's own
copies (SimCLR, BYOL and others that were not PyTorch files) have the plain names under
"state_dict".

Sources: `torchvision/models/resnet.py`; the prefixes of BenchmarkTransferLearning's models.
"""

from fmi_jax.models.resnet import ResNet
from weights_convert.engine import Head, Ignored, Layout, Rule, batch_norm
from weights_convert.ops import CONV2D


def _conv(source: str, target: str) -> Rule:
    return Rule((f"{source}.weight",), (f"{target}.kernel",), CONV2D)


_HERE, _THERE = "layer{stage}.{j}", "blocks.{i}.{j}"
_RULES: tuple[Rule, ...] = (
    _conv("conv1", "conv1"),
    *batch_norm("bn1", "bn1"),
    _conv(f"{_HERE}.conv{{k}}", f"{_THERE}.conv{{k}}"),
    *batch_norm(f"{_HERE}.bn{{k}}", f"{_THERE}.bn{{k}}"),
    _conv(f"{_HERE}.downsample.0", f"{_THERE}.downsample.conv"),
    *batch_norm(f"{_HERE}.downsample.1", f"{_THERE}.downsample.bn"),
)
_COMPUTED = {"stage": lambda i, _: i + 1}
_FC = Ignored("fc.", "the classifier of the pre-training classes, or its projection head")

PLAIN = Layout(
    name="resnet",
    title="ResNet of torchvision and timm; supervised, iNat2021, Barlow Twins, DINO,"
    " domain-adapted, and the second study's copies",
    family=ResNet,
    rules=_RULES,
    computed=_COMPUTED,
    ignored=(_FC,),
    wrappers=("", "state_dict", "model"),
    prefixes=("", "module."),
    publishers=("original", "timm"),
    head=Head("fc"),
)
MOCO = Layout(
    name="resnet_moco",
    title="ResNet of MoCo and PCL",
    family=ResNet,
    rules=_RULES,
    computed=_COMPUTED,
    ignored=(
        _FC,
        Ignored("module.encoder_k.", "the momentum encoder, which no one fine-tunes"),
        Ignored("module.queue", "features of past batches"),
        Ignored("module.queue_ptr", "where the next ones go"),
    ),
    wrappers=("state_dict",),
    prefixes=("module.encoder_q.",),
    publishers=(),
)
PYCONTRAST = Layout(
    name="resnet_pycontrast",
    title="ResNet of InfoMin, InsDis and PIRL",
    family=ResNet,
    rules=_RULES,
    computed=_COMPUTED,
    ignored=(
        _FC,
        Ignored("module.head.", "the projection head"),
        Ignored("module.head_jig.", "the projection head of jigsaw pieces"),
    ),
    wrappers=("model", "state_dict", ""),
    prefixes=("module.encoder.",),
    publishers=(),
)
SWAV = Layout(
    name="resnet_swav",
    title="ResNet of SwAV, DeepCluster v2 and SeLa v2",
    family=ResNet,
    rules=_RULES,
    computed=_COMPUTED,
    ignored=(
        Ignored("projection_head.", "the projection head"),
        Ignored("prototypes.", "the cluster centres"),
    ),
    wrappers=("", "state_dict"),
    prefixes=("module.",),
    publishers=(),
)
LAYOUTS = (PLAIN, MOCO, PYCONTRAST, SWAV)
