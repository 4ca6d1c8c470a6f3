"""ResNets under the names of torchvision, which timm and nearly every publisher kept, and as
transformers writes them to disk.

A file of the third study's zoo is one of these with a prefix, a wrapper or a training head of
its own: one layout for each way of pre-training whose heads must be named. The study's own
copies (SimCLR, BYOL and others that were not PyTorch files) have the plain names under
"state_dict".

BYOL's own file is a pickle of haiku's ResNet-50. haiku pads a convolution of stride 2 by "SAME":
before an even number of pixels by one less than PyTorch and this network. The weights are the same.

Sources: `torchvision/models/resnet.py`; the prefixes of BenchmarkTransferLearning's models;
`byol/utils/networks.py` of deepmind-research.
"""

from fmi_jax.models.resnet import ResNet
from weights_convert.engine import Head, Ignored, Layout, Rule, batch_norm, conv2d, same
from weights_convert.ops import drop_axes

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

_BLOCK, _NATIVE_BLOCK = "block_group_{i}.block_{j}", "blocks.{i}.{j}"
_CHANNELS = drop_axes(3)  # of [1, 1, 1, c]


def _haiku(conv: str, norm: str, native_conv: str, native_norm: str) -> tuple[Rule, ...]:
    """The rules for a convolution, whose axes are ours, and its batch norm."""
    return (
        *same(f"{conv}.w", f"{native_conv}.kernel"),
        Rule((f"{norm}.scale",), (f"{native_norm}.scale",), _CHANNELS),
        Rule((f"{norm}.offset",), (f"{native_norm}.bias",), _CHANNELS),
        Rule((f"{norm}.mean_ema.average",), (f"{native_norm}.mean",), _CHANNELS),
        Rule((f"{norm}.var_ema.average",), (f"{native_norm}.var",), _CHANNELS),
        *same(f"{norm}.mean_ema.counter", f"{native_norm}.count"),
    )


_HAIKU_NORMS = (
    "initial_batchnorm",
    *(f"{_BLOCK}.batchnorm_{k}" for k in range(3)),
    f"{_BLOCK}.shortcut_batchnorm",
)
BYOL = Layout(
    name="resnet_haiku_byol",
    title="ResNet of BYOL's haiku pickle, padded as in PyTorch (see docs/models.md)",
    family=ResNet,
    rules=(
        *_haiku("initial_conv", "initial_batchnorm", "conv1", "bn1"),
        *(
            rule
            for k in range(3)
            for rule in _haiku(
                f"{_BLOCK}.conv_{k}",
                f"{_BLOCK}.batchnorm_{k}",
                f"{_NATIVE_BLOCK}.conv{k + 1}",
                f"{_NATIVE_BLOCK}.bn{k + 1}",
            )
        ),
        *_haiku(
            f"{_BLOCK}.shortcut_conv",
            f"{_BLOCK}.shortcut_batchnorm",
            f"{_NATIVE_BLOCK}.downsample.conv",
            f"{_NATIVE_BLOCK}.downsample.bn",
        ),
    ),
    ignored=(
        *(
            Ignored(f"{norm}.{average}.hidden", "the average before it is corrected for its start")
            for norm in _HAIKU_NORMS
            for average in ("mean_ema", "var_ema")
        ),
        *(
            Ignored(f"{norm}.var_ema.counter", "the counter of the mean once more")
            for norm in _HAIKU_NORMS
        ),
    ),
    beside=(
        Ignored("projector.", "the projection head"),
        Ignored("predictor.", "the predictor"),
        Ignored("classifier.", "the classifier of the 1000 ImageNet classes"),
    ),
    wrappers=("online",),
    prefixes=("res_net50.",),
    publishers=(),
)
LAYOUTS = (PLAIN, MOCO, PYCONTRAST, SWAV, SMP, BYOL)

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
