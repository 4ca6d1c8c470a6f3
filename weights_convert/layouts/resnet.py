"""ResNets under the names of torchvision, which timm and nearly every publisher kept, and as
transformers writes them to disk.

A file of the third study's zoo is one of these with a prefix, a wrapper or a training head of
its own: one layout for each way of pre-training whose heads must be named. The study's own
copies (SimCLR, BYOL and others that were not PyTorch files) have the plain names under
"state_dict".

Sources: `torchvision/models/resnet.py`; the prefixes of BenchmarkTransferLearning's models.
"""

from fmi_jax.models.resnet import ResNet
from weights_convert.engine import Head, Ignored, Layout, Rule, batch_norm, conv2d

_HERE, _THERE = "layer{stage}.{j}", "blocks.{i}.{j}"
_RULES: tuple[Rule, ...] = (
    *conv2d("conv1", "conv1", bias=False),
    *batch_norm("bn1", "bn1"),
    *conv2d(f"{_HERE}.conv{{k}}", f"{_THERE}.conv{{k}}", bias=False),
    *batch_norm(f"{_HERE}.bn{{k}}", f"{_THERE}.bn{{k}}"),
    *conv2d(f"{_HERE}.downsample.0", f"{_THERE}.downsample.conv", bias=False),
    *batch_norm(f"{_HERE}.downsample.1", f"{_THERE}.downsample.bn"),
)
_COMPUTED = {"stage": lambda i, _: i + 1}
_FC = Ignored("fc.", "the classifier of the pre-training classes, or its projection head")

PLAIN = Layout(
    name="resnet",
    title="ResNet of torchvision and timm; supervised, iNat2021, Barlow Twins, DINO,"
    " domain-adapted, and the third study's copies",
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
        *(
            ignored
            for outer in ("module.", "")  # a network trained on one device has none
            for ignored in (
                Ignored(f"{outer}encoder_k.", "the momentum encoder, which no one fine-tunes"),
                Ignored(f"{outer}queue", "features of past batches"),
                Ignored(f"{outer}queue_ptr", "where the next ones go"),
            )
        ),
    ),
    wrappers=("state_dict", ""),
    prefixes=("module.encoder_q.", "encoder_q."),
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
SMP = Layout(
    name="resnet_smp",
    title="ResNet, as the encoder of a network of segmentation_models_pytorch",
    family=ResNet,
    rules=_RULES,
    computed=_COMPUTED,
    ignored=(
        Ignored("decoder.", "the decoder"),
        Ignored("segmentation_head.", "the layer of its logits"),
    ),
    wrappers=("", "state_dict"),
    prefixes=("encoder.",),
    publishers=(),
)
LAYOUTS = (PLAIN, MOCO, PYCONTRAST, SWAV, SMP)

# A `ResNetModel` or `ResNetForImageClassification`.
_STAGE = "encoder.stages.{s}.layers.{i}"
_NATIVE = "blocks.{s}.{i}"


def _conv_norm(source: str, conv: str, norm: str) -> tuple[Rule, ...]:
    return (
        *conv2d(f"{source}.convolution", conv, bias=False),
        *batch_norm(f"{source}.normalization", norm),
    )


HF = Layout(
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
