"""Decoders of U-Net and UPerNet: those of other packages, and on every family of backbones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_packages
import segmentation_models_pytorch as smp
import short_runs
import torch
from flax import nnx
from parity_families.unet import UNetArch, WholeUNet, layout, soft_dice
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from test_models import assert_close
from tiny_backbones import ONE_PER_FAMILY, TINY, fill
from tolerances import LOSS_ON_DEVICES, PARITY_FORWARD
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.arch import StageByStage
from fmi_jax.models.base import Backbone, Execution, create_abstract, parameters
from fmi_jax.models.deit import DeiT
from fmi_jax.models.registry import BACKBONES
from fmi_jax.models.resnet import ResNetArch
from fmi_jax.models.swin import Swin
from fmi_jax.protocols.heads.unet import UNet, UNetConfig
from fmi_jax.protocols.heads.upernet import UPerNet, UPerNetHead
from fmi_jax.run.network import read_trained
from fmi_jax.training.partition import partition
from weights_convert.engine import Layout, Rule, batch_norm, conv2d, convert, linear, match
from weights_convert.layouts.registry import layouts_of
from weights_convert.ops import POINTWISE

assert reference_packages  # imports torchvision beside any build of torch

WIDTHS, LAYERS, DIVISOR = (20, 16, 12, 8, 5), (1, 2, 1, 1), 16
STEPS, RATE = 5, 0.1


class SmallEncoder(ResNetEncoder):
    """An encoder with a sixteenth of the channels."""

    def __init__(self, channels: tuple[int, ...]):
        super().__init__(channels, block=smp.encoders.resnet.Bottleneck, layers=LAYERS)
        stem = 64 // DIVISOR
        self.conv1 = torch.nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(stem)

    def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> Any:
        if planes == 64:
            self.inplanes = 64 // DIVISOR
        return super()._make_layer(block, planes // DIVISOR, *rest, **options)


def reference() -> torch.nn.Module:
    """A small `smp.Unet`, in training mode, none of whose tensors is as it was drawn.

    Channels are mostly on or mostly off: close to the kink of a ReLU rounding decides whether a
    gradient passes. That of a ResNet-50 as it is drawn is 3 % off in PyTorch's own float32, beside
    its float64.
    """
    torch.manual_seed(0)
    channels = (3, *(n // DIVISOR for n in (64, 256, 512, 1024, 2048)))
    model = smp.Unet("resnet50", encoder_weights=None, decoder_channels=WIDTHS)
    model.encoder, model.decoder = SmallEncoder(channels), UnetDecoder(channels, WIDTHS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias += 2 * (-1) ** torch.arange(len(module.bias))
    return model.train()


def test_five_steps_are_those_of_segmentation_models_pytorch() -> None:
    """Loss, every gradient and every running statistic, from the same weights and batch."""
    rng, theirs = np.random.default_rng(1), reference()
    images = rng.normal(size=(3, 64, 96, 3)).astype(np.float32)
    mask = (images[..., :1] > 0.5).astype(np.float32)
    arch = UNetArch(
        in_channels=3,
        encoder=ResNetArch(
            in_channels=3,
            stem_width=4,
            depths=LAYERS,
            widths=(4, 8, 16, 32),
            expansion=4,
            norm_eps=1e-5,
            norm_momentum=0.1,
        ),
        widths=WIDTHS,
        num_classes=1,
    )
    module = create_abstract(WholeUNet, arch, Execution())

    def native(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        # Copies: PyTorch writes to its tensors in place, perhaps before they are read here.
        group = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
        return convert({"": group}, parameters(module), [layout()]).params

    parts, start = partition(module, lambda name: True), native(theirs.state_dict())
    params, stats = (
        {n: jnp.asarray(start[n]) for n in names} for names in (parts.params, parts.running)
    )

    @jax.jit
    def step(params: Any, stats: Any) -> tuple[Any, ...]:
        def loss(params: Any) -> tuple[Any, Any]:
            model = parts.merge(params, stats)
            probabilities = jax.nn.sigmoid(model(jnp.asarray(images), rngs=nnx.Rngs(0)))
            return soft_dice(probabilities, mask), parts.read(model, parts.running)

        (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - RATE * g, params, gradient), after

    optimizer = torch.optim.SGD(theirs.parameters(), RATE)
    their_images, their_mask = (torch.tensor(x).permute(0, 3, 1, 2) for x in (images, mask))
    for _ in range(STEPS):
        value, gradient, params, stats = step(params, stats)
        expected = soft_dice(theirs(their_images).sigmoid(), their_mask)
        optimizer.zero_grad()
        expected.backward()
        np.testing.assert_allclose(float(value), expected.item(), rtol=PARITY_FORWARD)
        tensors = dict(theirs.state_dict()) | {n: p.grad for n, p in theirs.named_parameters()}
        # As one vector: of single sums that cancel few digits are left.
        assert_same_direction(gradient, native(tensors))
        optimizer.step()
    trained = native(theirs.state_dict())
    for name, array in (params | stats).items():
        assert_close(array, trained[name], PARITY_FORWARD)


def assert_same_direction(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The gradients differ by less than the tolerance, relative to the length of theirs."""
    difference = sum(np.square(ours[name] - theirs[name]).sum() for name in ours)
    length = sum(np.square(theirs[name]).sum() for name in ours)
    assert difference <= PARITY_FORWARD**2 * length


def test_the_layout_is_that_of_the_studys_network() -> None:
    shapes = smp.Unet("resnet50", encoder_weights=None).state_dict()
    arch = UNetArch(
        in_channels=3,
        encoder=BACKBONES["resnet50"].arch,
        widths=UNetConfig().widths,
        num_classes=1,
    )
    native = parameters(create_abstract(WholeUNet, arch, Execution()))
    group = {name: tensor.numpy() for name, tensor in shapes.items()}
    assert not match({"": group}, native, [layout()])[0].problems()
    # Its encoder is a backbone that the converter finds by itself.
    spec = BACKBONES["resnet50"]
    encoder = parameters(create_abstract(spec.family, spec.arch, Execution()))
    found = match({"": group}, encoder, layouts_of(spec.family))[0]
    assert (found.layout.name, found.problems()) == ("resnet_smp", [])


def test_the_decoder_of_upernet_is_that_of_transformers() -> None:
    """In training, with its running statistics, on maps of sides that do not divide another."""
    widths, width, sides = (3, 5, 7), 11, ((13, 17), (7, 9), (4, 5))
    torch.manual_seed(0)
    theirs = UperNetHead(UperNetConfig(hidden_size=width, num_labels=2), widths).train()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def rules(source: str, target: str) -> tuple[Rule, ...]:
        return (
            *conv2d(f"{source}.conv", f"{target}.conv", bias=False),
            *batch_norm(f"{source}.batch_norm", f"{target}.norm"),
        )

    names = Layout(
        name="upernet",
        title="decoder of a UPerNet",
        family=Backbone,
        rules=(
            *rules("psp_modules.{i}.1", "pooled.{i}"),
            *rules("bottleneck", "context"),
            *rules("lateral_convs.{i}", "laterals.{i}"),
            *rules("fpn_convs.{i}", "smooth.{i}"),
            *rules("fpn_bottleneck", "fusion"),
            *linear("classifier", "linear", POINTWISE),
        ),
    )
    module = nnx.eval_shape(
        lambda: UPerNetHead(widths, width, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )

    def native() -> dict[str, np.ndarray]:
        # Copies, as above: the running statistics are written in place.
        state = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
        return convert({"": state}, parameters(module), [names]).params

    rng = np.random.default_rng(2)
    maps = [
        rng.normal(size=(2, *side, d)).astype(np.float32)
        for side, d in zip(sides, widths, strict=True)
    ]
    parts, start = partition(module, lambda name: True), native()

    @jax.jit
    def run(arrays: Any, maps: Any) -> tuple[Any, Any]:
        decoder = parts.merge(arrays)
        return decoder(maps, training=True), parts.read(decoder, parts.running)

    found, stats = run(start, maps)
    expected = theirs([torch.tensor(x).permute(0, 3, 1, 2) for x in maps])
    assert_close(found, expected.permute(0, 2, 3, 1).detach(), PARITY_FORWARD)
    trained = native()
    for name, array in stats.items():
        assert_close(array, trained[name], PARITY_FORWARD)


HEADS: dict[str, Callable[..., nnx.Module]] = {
    "unet": lambda backbone, **rest: UNet(backbone, 3, widths=(13, 11, 7, 5, 3), **rest),
    "upernet": lambda backbone, **rest: UPerNet(backbone, 3, width=13, **rest),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ONE_PER_FAMILY.values())
def test_every_family_has_the_maps_that_a_decoder_reads(name: str, head: str) -> None:
    """Logits for each pixel, at sides that are no multiples of anything."""
    tiny = TINY[name]

    def logits(images: jax.Array) -> jax.Array:
        backbone = tiny.family(tiny.arch, Execution(), rngs=nnx.Rngs(0))  # type: ignore[call-arg]
        return HEADS[head](backbone, eval_mode=True, rngs=nnx.Rngs(1))(images, rngs=nnx.Rngs(2))

    shape = (2, tiny.side, tiny.side, tiny.arch.in_channels)
    if head == "upernet" and not isinstance(tiny.arch, StageByStage):
        with pytest.raises(UsageError, match=r"all on one grid: expected a network of stages"):
            jax.eval_shape(logits, jax.ShapeDtypeStruct(shape, jnp.float32))
        return
    found = jax.eval_shape(logits, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert (found.shape, found.dtype) == ((2, tiny.side, tiny.side, 3), jnp.float32)


@pytest.mark.parametrize("name", [ONE_PER_FAMILY[family] for family in (DeiT, Swin)])
def test_every_layer_of_a_decoder_counts(name: str) -> None:
    """No map of tokens, stages or the image is left out, and logits depend on all of them."""
    tiny = TINY[name]
    abstract = nnx.eval_shape(
        lambda: HEADS["unet"](
            tiny.family(tiny.arch, Execution(), rngs=nnx.Rngs(0)),  # type: ignore[call-arg]
            eval_mode=True,
            rngs=nnx.Rngs(0),
        )
    )
    parts = partition(abstract, lambda name: not name.startswith("backbone."))
    # Where layer decay and the division over devices expect the layers of any head.
    assert {name.partition(".")[0] for name in parts.params} == {"head"}
    arrays = parameters(fill(abstract))
    images = np.random.default_rng(0).normal(size=(2, tiny.side, tiny.side, 3))
    cotangent = np.random.default_rng(1).normal(size=(2, tiny.side, tiny.side, 3))
    frozen = {name: arrays[name] for name in (*parts.followers, *parts.frozen)}

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> Any:
        return (parts.merge(params, frozen)(jnp.asarray(images, jnp.float32)) * cotangent).sum()

    for path, value in gradient({name: arrays[name] for name in parts.params}).items():
        assert np.abs(value).max() > 0, path


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    short_runs.prepare_masked(Path(config.data.data_dir))
    config.data.name, config.protocol, config.head = "masked", "fit", "unet"
    config.backbone.name, config.backbone.last_block = "resnet_nano", -1
    config.train.max_steps, config.train.bootstrap_samples = 3, 7
    return config


def test_a_frozen_backbone_keeps_its_statistics_and_the_decoder_learns_its_own(
    masked: ExperimentConfig, tmp_path: Path
) -> None:
    """In a run, whose checkpoint has those of the decoder alone; eight devices make no other."""
    config = short_runs.changed(masked, {"adapt": "frozen"})
    one = short_runs.run(config, tmp_path / "one")
    eight = short_runs.run(config, tmp_path / "eight", devices=8)
    np.testing.assert_allclose(
        short_runs.losses(tmp_path / "eight"), short_runs.losses(tmp_path / "one"), LOSS_ON_DEVICES
    )
    np.testing.assert_allclose(eight.val.values["loss"], one.val.values["loss"], LOSS_ON_DEVICES)
    trained = read_trained(tmp_path / "one")
    running = {name.rpartition(".")[0] for name in trained.assembly.partition.running}
    norms = {name.rpartition(".")[0] for name in trained.arrays if name.endswith(".count")}
    assert running == {name for name in norms if not name.startswith("backbone.")}
    steps = {name: int(trained.arrays[f"{name}.count"]) for name in norms}
    kept = one.best.step
    assert steps == {name: kept if name in running else 0 for name in norms}


def test_all_batch_norms_count_a_batch_once_where_everything_learns(
    masked: ExperimentConfig, tmp_path: Path
) -> None:
    """The stem is read at two sizes and computed in one pass."""
    config = short_runs.changed(masked, {"adapt": "full"})
    result = short_runs.run(config, tmp_path)
    counts = {k: int(v) for k, v in read_trained(tmp_path).arrays.items() if k.endswith(".count")}
    assert "backbone.bn1.count" in counts
    assert set(counts.values()) == {result.best.step}


def test_a_training_batch_of_one_image_is_refused_by_upernet() -> None:
    decoder = nnx.eval_shape(lambda: UPerNetHead((3, 5), 7, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    with pytest.raises(UsageError, match="expected two images or more"):
        decoder([jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 2, 2, 5))], training=True)
