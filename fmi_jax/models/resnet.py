"""ResNet-50, -101 and -152 (arXiv 1512.03385), with the stride in the 3x3 convolution."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import StageByStage
from fmi_jax.models.base import Backbone, BackboneSpec, Execution, Tiny, WeightsSource
from fmi_jax.nn.conv import convolution
from fmi_jax.nn.linear import flat_product
from fmi_jax.nn.norm import BatchNorm
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetArch(StageByStage):
    """The shape of a ResNet of bottlenecks.

    Attributes:
      stem_width: channels after the first convolution.
      depths: bottlenecks of each stage.
      widths: channels inside the bottlenecks of each stage.
      expansion: channels of a stage's output over those inside.
      norm_eps: epsilon of every batch norm.
      norm_momentum: share of a batch in the new running statistics.
    """

    stem_width: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    expansion: int
    norm_eps: float
    norm_momentum: float

    @property
    def feature_width(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1] * self.expansion

    @property
    def fine_width(self) -> int:
        """Channels before the max-pooling."""
        return self.stem_width


class Conv(nnx.Module):
    """A square convolution without bias, padded by half its side as in PyTorch.

    Args:
      in_channels, out_channels: channels before and after.
      size: side of the kernel, odd.
      stride: stride in both directions.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        stride: int = 1,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.dtype = dtype
        init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Every `stride`-th position, from the first."""
        kernel, s = self.kernel[...].astype(self.dtype), self.stride
        x, pad = x.astype(self.dtype), kernel.shape[0] // 2
        if pad == 0:  # a matrix product: on a CPU twice as fast as the convolution it is
            return flat_product(x[:, ::s, ::s], kernel[0, 0])
        return convolution(x, kernel, (s, s), [(pad, pad)] * 2)


def relu(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """`max(x, 0)`; NaN stays NaN, the gradient at 0 is 0.

    Written as a choice: a maximum with a constant XLA on a CPU takes for cheap enough to be
    computed again by each of its readers, and with it the sum of all shortcuts before it. The
    forward pass of ResNet-152 then took a third longer.
    """
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The largest of each 3x3 window, every other one, as `F.max_pool2d(x, 3, 2, padding=1)`.

    The gradient goes to the first of equal values in reading order, as in PyTorch: the same, as
    rows of a window are compared before its columns. Written with slices, as XLA on a CPU turns
    the gradient of `reduce_window` into a sort-like scatter of ten times the cost.
    """
    return _pool_axis(_pool_axis(x, 2), 1)


def _pool_axis(x: Array, axis: int) -> Array:
    size = x.shape[axis]
    out = (size + 1) // 2
    width = [(0, 0)] * x.ndim
    width[axis] = (1, 2 * out + 1 - size)  # one more than the last window needs: pairs
    x = jnp.pad(x, width, constant_values=-jnp.inf)
    pairs = x.reshape(*x.shape[:axis], out + 1, 2, *x.shape[axis + 1 :])
    first, second = (jnp.take(pairs, i, axis=axis + 1) for i in (0, 1))

    def cut(a: Array, start: int) -> Array:
        index = [slice(None)] * a.ndim
        index[axis] = slice(start, start + out)
        return a[tuple(index)]

    return functools.reduce(_larger, (cut(first, 0), cut(second, 0), cut(first, 1)))


def _larger(a: Array, b: Array) -> Array:
    """The first of two equal ones; NaN if either is."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with a batch norm, beside a shortcut.

    Args:
      in_channels: channels of the input; with other than `width * arch.expansion`, or with a
        stride, the shortcut is a 1x1 convolution with a batch norm.
      width: channels inside.
      stride: stride of the 3x3 convolution and of the shortcut.
      arch: arch of the network.
      dtype: compute type of convolutions and activations.
      rngs: stream `params`.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        arch: ResNetArch,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        out_channels = width * arch.expansion
        self.conv1 = Conv(in_channels, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(width, arch)
        self.conv2 = Conv(width, width, 3, stride, dtype=dtype, rngs=rngs)
        self.bn2 = _norm(width, arch)
        self.conv3 = Conv(width, out_channels, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _norm(out_channels, arch)
        same = stride == 1 and in_channels == out_channels
        self.downsample = (
            None if same else Shortcut(in_channels, out_channels, stride, arch, dtype, rngs)
        )

    def __call__(
        self, x: Float[Array, "b h w c"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b h2 w2 d"]:
        """The bottleneck's output; `rngs` puts its batch norms in training mode."""
        training = rngs is not None
        y = relu(self.bn1(self.conv1(x), training=training))
        y = relu(self.bn2(self.conv2(y), training=training))
        y = self.bn3(self.conv3(y), training=training)
        shortcut = x if self.downsample is None else self.downsample(x, training=training)
        return relu(y + shortcut)


class Shortcut(nnx.Module):
    """A 1x1 convolution and its batch norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        arch: ResNetArch,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(in_channels, out_channels, 1, stride, dtype=dtype, rngs=rngs)
        self.bn = _norm(out_channels, arch)

    def __call__(self, x: Float[Array, "b h w c"], *, training: bool) -> Float[Array, "b h2 w2 d"]:
        """The input as the residual branch can be added to it."""
        return self.bn(self.conv(x), training=training)


class ResNet(Backbone[ResNetArch]):
    """A ResNet; a block is a stage, `pooled` the mean of its output, `tokens` the output itself.

    A stage starts with the bottleneck that halves the image, so that every block ends where the
    reference's `layerN` does. Any image size is taken. There is no [cls] token.

    Args:
      arch: shape of the network.
      execution: compute type and recomputation; `drop_path` has no effect.
      rngs: stream `params`.
    """

    tiny = (
        Tiny(
            "resnet",
            ResNetArch(
                in_channels=3,
                stem_width=5,
                depths=(1, 2, 1),
                widths=(3, 5, 7),
                expansion=4,
                norm_eps=1e-5,
                norm_momentum=0.1,
            ),
            37,
        ),
    )

    def __init__(self, arch: ResNetArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(arch, execution)
        dtype = execution.dtype
        self.conv1 = Conv(arch.in_channels, arch.stem_width, 7, 2, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(arch.stem_width, arch)
        channels = (arch.stem_width, *(width * arch.expansion for width in arch.widths))
        self.blocks = nnx.List(
            nnx.List(
                Bottleneck(
                    channels[stage + 1 if i else stage],
                    width,
                    2 if stage > 0 and i == 0 else 1,
                    arch,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(depth)
            )
            for stage, (depth, width) in enumerate(zip(arch.depths, arch.widths, strict=True))
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns after the stem, a quarter of the image's, rounded up."""
        return -(-height // 4), -(-width // 4)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The stem: convolution, batch norm, ReLU, max-pooling; in evaluation mode."""
        return self.enter(images, None)[1]

    def enter(
        self, images: Float[Array, "b h w c"], rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b h2 w2 d"], Float[Array, "b rows cols d"]]:
        """The stem before its max-pooling and after, in training mode with `rngs`.

        A training batch that leaves one value per channel raises `UsageError`, as in PyTorch:
        it has no variance.
        """
        shrink = 2 ** (self.arch.num_blocks + 1)
        b, h, w, _ = images.shape
        if rngs is not None and b * -(-h // shrink) * -(-w // shrink) == 1:
            raise UsageError(
                f"a training batch of one image of {h}x{w}: batch norm in the last stage needs"
                f" more than one value per channel; expected two images or more than {shrink}"
                " pixels a side."
            )
        fine = relu(self.bn1(self.conv1(images), training=rngs is not None))
        return fine, max_pool(fine)

    def run_block(
        self, block: Any, x: Float[Array, "b h w c"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b h2 w2 d"]:
        """One stage, rematerialised bottleneck by bottleneck: one may be most of the network."""
        for bottleneck in block:
            x = super().run_block(bottleneck, x, rngs)
        return x

    def readout(self, x: Float[Array, "b h w d"], block: int, grid: tuple[int, int]) -> Features:
        """Features of a network that ends here: no norm follows the last stage."""
        return Features(x.astype(jnp.float32).mean((1, 2)), x, None)


def _norm(width: int, arch: ResNetArch) -> BatchNorm:
    return BatchNorm(width, eps=arch.norm_eps, momentum=arch.norm_momentum)


def _spec(
    name: str, depths: tuple[int, ...], num_params: int, sources: tuple[WeightsSource, ...]
) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        family=ResNet,
        arch=ResNetArch(
            in_channels=3,
            stem_width=64,
            depths=depths,
            widths=(64, 128, 256, 512),
            expansion=4,
            norm_eps=1e-5,
            norm_momentum=0.1,
        ),
        num_params=num_params,
        patch_size=32,
        image_size=224,
        sources=sources,
        note="supervised on ImageNet-1k",
    )


def _supervised(file: str, sha256: str) -> WeightsSource:
    return WeightsSource(
        tag="in1k",
        url=f"https://download.pytorch.org/models/{file}-{sha256}.pth",
        sha256=sha256,
        layout="resnet",
        licence="BSD-3-Clause",
    )


def _domain_adapted(tag: str, record: int, file: str) -> WeightsSource:
    return WeightsSource(
        tag=tag,
        url=f"https://zenodo.org/records/{record}/files/{file}.pth.tar",
        sha256=None,
        layout="resnet",
        licence=f"as stated at zenodo.org/records/{record}",
    )


_FAIR, _MOCO = "https://dl.fbaipublicfiles.com", "moco/moco_checkpoints/moco"
_PCL = "https://storage.googleapis.com/sfr-pcl-data-research/PCL_checkpoint"


def _unlabelled(tag: str, url: str, layout: str, licence: str) -> WeightsSource:
    return WeightsSource(tag=tag, url=url, sha256=None, layout=layout, licence=licence)


_ZOO = (
    WeightsSource(
        tag="dino_in1k",
        url="https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        sha256=None,
        layout="resnet",
        licence="Apache-2.0",
    ),
    # On ImageNet without its labels; the third study's other files have no address that lasts.
    _unlabelled(
        "moco_v1",
        f"{_FAIR}/{_MOCO}_v1_200ep/moco_v1_200ep_pretrain.pth.tar",
        "resnet_moco",
        "CC-BY-NC-4.0",
    ),
    _unlabelled(
        "moco_v2",
        f"{_FAIR}/{_MOCO}_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "resnet_moco",
        "CC-BY-NC-4.0",
    ),
    *(
        _unlabelled(
            f"pcl_{version}",
            f"{_PCL}/PCL_{version}_epoch200.pth.tar",
            "resnet_moco",
            "as stated at github.com/salesforce/PCL",
        )
        for version in ("v1", "v2")
    ),
    *(
        _unlabelled(
            tag,
            f"{_FAIR}/deepcluster/{tag}_{epochs}ep_pretrain.pth.tar",
            "resnet_swav",
            "as stated at github.com/facebookresearch/swav",
        )
        for tag, epochs in (("swav", 800), ("deepclusterv2", 800), ("selav2", 400))
    ),
    _unlabelled(
        "barlow_twins",
        f"{_FAIR}/barlowtwins/ljng/resnet50.pth",
        "resnet",
        "as stated at github.com/facebookresearch/barlowtwins",
    ),
    # Supervised on chest radiographs, from scratch or from ImageNet: the third study's own.
    _domain_adapted("chestxray14", 5205234, "chestxray14"),
    _domain_adapted("chexpert", 5205234, "chexpert"),
    _domain_adapted("in1k_chestxray14", 5205234, "ImageNet_chestxray14"),
    _domain_adapted("in1k_chexpert", 5205234, "ImageNet_chexpert"),
    _domain_adapted("in1k_mimic", 17627332, "domain_adapted_resnet50_imagenet_mimic_checkpoint"),
)

SPECS = (
    _spec("resnet50", (3, 4, 6, 3), 23_508_032, (_supervised("resnet50", "0676ba61"), *_ZOO)),
    _spec("resnet101", (3, 4, 23, 3), 42_500_160, (_supervised("resnet101", "63fe2227"),)),
    _spec("resnet152", (3, 8, 36, 3), 58_143_808, (_supervised("resnet152", "394f9c45"),)),
    BackboneSpec(
        name="resnet_nano",
        family=ResNet,
        arch=ResNetArch(
            in_channels=3,
            stem_width=16,
            depths=(1, 1, 1, 1),
            widths=(8, 16, 32, 64),
            expansion=2,
            norm_eps=1e-5,
            norm_momentum=0.1,
        ),
        num_params=79_888,
        patch_size=32,
        image_size=96,
        sources=(),
        note="small enough to train on a laptop's CPU; no published weights",
    ),
)
