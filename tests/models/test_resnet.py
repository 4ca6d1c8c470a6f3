"""ResNets: batch norm as PyTorch keeps it, max-pooling, and the zoo of published files."""

import dataclasses
import functools
import json
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from reference_packages import torchvision
from test_models import assert_close, kept_for_backward
from tiny_backbones import TINY, fill
from tolerances import PARITY_FORWARD, SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models import base
from fmi_jax.models.base import Execution
from fmi_jax.models.registry import BACKBONES
from fmi_jax.models.resnet import ResNet, max_pool
from fmi_jax.nn.norm import BatchNorm
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import Parts
from fmi_jax.training.partition import partition
from weights_convert.engine import convert, match, plan
from weights_convert.layouts.registry import LAYOUTS, layouts_of
from weights_convert.read import read_checkpoint

ARCH = TINY["resnet"].arch
SHARED = Path(__file__).parent.parent.parent.parent / "shared" / "manifests"


def random(*shape):
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def forward(model, x, training=True):
    """Features, and the running statistics afterwards, by name."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        model = nnx.merge(graphdef, state)
        pooled = model.features(x, rngs=nnx.Rngs(dropout=0) if training else None).pooled
        stats = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
        return pooled, {".".join(map(str, path)): value.get_value() for path, value in stats}

    return run(state, x)


@functools.cache
def resnet(remat=False):
    return fill(base.create_abstract(ResNet, ARCH, Execution(remat=remat)))


def test_batch_norm_keeps_the_statistics_of_torch():
    ours = BatchNorm(5, eps=1e-3, momentum=0.2)
    theirs = torch.nn.BatchNorm2d(5, eps=1e-3, momentum=0.2)
    with torch.no_grad():
        theirs.weight.copy_(torch.linspace(0.5, 2, 5))
        theirs.bias.copy_(torch.linspace(-1, 1, 5))
    ours.scale[...] = jnp.linspace(0.5, 2, 5)
    ours.bias[...] = jnp.linspace(-1, 1, 5)
    for x in jnp.asarray(3 + 2 * random(3, 2, 3, 7, 5)):  # three batches
        expected = (
            theirs(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
        )
        assert_close(ours(x, training=True), expected.numpy(), PARITY_FORWARD)
    assert int(ours.count[...]) == int(theirs.num_batches_tracked) == 3
    assert_close(ours.mean[...], theirs.running_mean.numpy(), PARITY_FORWARD)
    assert_close(ours.var[...], theirs.running_var.numpy(), PARITY_FORWARD)
    theirs.eval()
    expected = theirs(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
    assert_close(ours(x, training=False), expected.numpy(), PARITY_FORWARD)
    assert int(ours.count[...]) == 3


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 4)])
def test_max_pool_and_its_gradient_are_those_of_torch(shape):
    x = np.round(random(2, *shape, 3))  # many equal values
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_(True)
    expected = torch.nn.functional.max_pool2d(theirs, 3, 2, padding=1)
    cotangent = random(*expected.permute(0, 2, 3, 1).shape)
    expected.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    ours, backward = jax.vjp(max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(ours, expected.detach().permute(0, 2, 3, 1))
    assert_close(backward(cotangent)[0], theirs.grad.permute(0, 2, 3, 1), SAME_FLOAT32)


@pytest.mark.parametrize("place", range(3))
def test_max_pool_keeps_nan(place):
    x = jnp.ones((1, 3, 3, 1)).at[0, place, place].set(jnp.nan)
    assert np.isnan(max_pool(x)).any()


def test_statistics_are_those_of_the_whole_batch_on_eight_devices():
    graphdef, state = nnx.split(BatchNorm(5, eps=1e-5, momentum=0.1))

    @jax.jit
    def run(state, x):
        norm = nnx.merge(graphdef, state)
        return norm(x, training=True), norm.mean[...], norm.var[...]

    x = jnp.asarray(random(8, 3, 7, 5) + np.arange(8).reshape(8, 1, 1, 1))
    mesh = parallel.make_mesh(devices=jax.devices()[:8])
    divided = jax.device_put(x, parallel.batch_sharding(mesh))
    assert {shard.data.shape[0] for shard in divided.addressable_shards} == {1}
    assert_close(run(state, divided), run(state, x), PARITY_FORWARD)


def test_evaluation_leaves_the_statistics_alone():
    before = base.parameters(resnet())
    stats = forward(resnet(), jnp.asarray(random(1, 37, 41, 3)), training=False)[1]
    assert "blocks.2.0.bn3.count" in stats
    for name, value in stats.items():
        np.testing.assert_array_equal(value, before[name])


def test_rematerialisation_changes_neither_statistics_nor_features():
    x = random(2, 37, 41, 3)
    pooled, stats = forward(resnet(), x)
    pooled_again, stats_again = forward(resnet(remat=True), x)
    assert_close(pooled_again, pooled, SAME_FLOAT32)
    assert_close(stats_again, stats, SAME_FLOAT32)
    kept = [kept_for_backward(resnet(remat), jnp.asarray(x)) for remat in (False, True)]
    assert kept[1] < kept[0] / 2


def test_one_small_training_image_is_refused():
    def pooled(model, x, rngs=None):
        return model.features(x, rngs=rngs).pooled

    given = resnet(), jnp.zeros((1, 16, 5, 3))
    with pytest.raises(UsageError, match=r"one image of 16x5.*expected two images"):
        nnx.eval_shape(pooled, *given, nnx.Rngs(dropout=0))
    assert nnx.eval_shape(pooled, *given).shape == (1, ARCH.feature_width)


@pytest.mark.parametrize(("protocol", "steps"), [("finetune", 1), ("linear_probe", 0)])
def test_a_frozen_backbone_keeps_its_statistics(protocol, steps):
    config = ExperimentConfig(protocol=protocol)

    def create():
        rngs = nnx.Rngs(0)
        backbone = ResNet(ARCH, Execution(), rngs=rngs)
        parts = Parts(
            backbone=backbone,
            transformer=None,
            num_classes=2,
            config=config,
            rngs=rngs,
        )
        return PROTOCOLS[protocol].fit.fit(config, ARCH).module(parts)

    trainable = PROTOCOLS[protocol].fit.fit(config, ARCH).learns
    parts = partition(nnx.eval_shape(create), trainable)
    assert ("backbone.bn1.count" in parts.followers) == bool(steps)
    assert ("backbone.bn1.count" in parts.frozen) != bool(steps)
    model = create()
    arrays = parts.read(model, tuple(parts.variables))

    @jax.jit
    def count(arrays, x):
        model = parts.merge(arrays)
        model(x, rngs=nnx.Rngs(dropout=0))
        return parts.read(model, ("backbone.bn1.count",))

    assert int(count(arrays, random(2, 37, 41, 3))["backbone.bn1.count"]) == steps


def published():
    """Name of the list of keys, backbone, layout, and the published class without arrays."""
    hf = functools.partial(transformers.ResNetConfig, layer_type="bottleneck")
    with torch.device("meta"):
        for name in ("resnet50", "resnet101", "resnet152"):
            yield name, name, "resnet", getattr(torchvision.models, name)()
        config = hf(depths=[3, 8, 36, 3], hidden_sizes=[256, 512, 1024, 2048])
        yield "hf_resnet152", "resnet152", "resnet_hf", transformers.ResNetModel(config)


def test_the_published_classes_convert_in_the_abstract():
    for name, backbone, layout, module in published():
        tensors = {
            key: jax.ShapeDtypeStruct(tuple(t.shape), np.dtype(str(t.dtype).removeprefix("torch.")))
            for key, t in module.state_dict().items()
        }
        spec = BACKBONES[backbone]
        native = base.parameters(base.create_abstract(spec.family, spec.arch, Execution()))
        best = match({"": tensors}, native, layouts_of(ResNet))[0]
        assert best.problems() == []
        assert best.layout.name == layout
        if (path := SHARED / f"{name}.json").exists():
            shared = json.loads(path.read_text())["tensors"]
            assert {key: list(t.shape) for key, t in tensors.items()} == shared


def zoo_file(layout, prefix, others=()):
    """The tensors of a tiny ResNet as `layout` has them, without counters of batches."""
    native = base.parameters(base.create_abstract(ResNet, ARCH, Execution()))
    values = {n: np.abs(random(*v.shape)).astype(v.dtype) for n, v in native.items()}
    tensors = {}
    for step in plan(LAYOUTS[layout], native, prefix):
        made = step.op.inverse(*(values[name] for name in step.targets))
        tensors.update(zip(step.sources, made, strict=True))
    tensors |= {key: random(3) for key in others}
    return native, values, tensors


# As published; what is not of the backbone is there so that it must be known by name.
ZOO = {
    "torchvision": ("resnet", "", "", ("fc.weight", "fc.bias")),
    "barlow twins": ("resnet", "", "", ()),
    "third study": ("resnet", "state_dict", "", ()),
    "inat2021": ("resnet", "state_dict", "", ("fc.weight", "fc.bias")),
    "chexpert": ("resnet", "state_dict", "module.", ("module.fc.weight",)),
    "swav": (
        "resnet_swav", "", "module.",
        ("module.projection_head.0.weight", "module.prototypes.weight"),
    ),
    "deepcluster": ("resnet_swav", "", "module.", ("module.prototypes.prototypes0.weight",)),
    "moco": (
        "resnet_moco", "state_dict", "module.encoder_q.",
        ("module.encoder_q.fc.0.weight", "module.encoder_k.conv1.weight", "module.queue",
         "module.queue_ptr"),
    ),
    "moco on one device": (
        "resnet_moco", "", "encoder_q.",
        ("encoder_q.fc.weight", "encoder_k.conv1.weight", "queue", "queue_ptr"),
    ),
    "infomin": (
        "resnet_pycontrast", "model", "module.encoder.",
        ("module.head.0.weight", "module.head_jig.fc1.weight"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_every_file_of_the_zoo_is_read(tmp_path, name):
    """From a file of before PyTorch 1.6, and of before batches were counted."""
    layout, wrapper, prefix, others = ZOO[name]
    native, values, tensors = zoo_file(layout, prefix, others)
    content = {k: torch.tensor(v) for k, v in tensors.items() if "num_batches" not in k}
    if wrapper:
        content = {wrapper: content, "epoch": 200, "arch": "resnet50"}
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    converted = convert(read_checkpoint(path).groups, native, layouts_of(ResNet))
    found = converted.match
    assert (found.layout.name, found.wrapper, found.prefix) == (layout, wrapper, prefix)
    assert converted.params.keys() == native.keys()
    for key, value in converted.params.items():
        expected = np.zeros_like(value) if key.endswith("count") else values[key]
        np.testing.assert_array_equal(value, expected, strict=True)


def test_counters_are_all_there_or_none():
    native, _, tensors = zoo_file("resnet", "")
    convert({"": tensors}, native, layouts_of(ResNet))
    del tensors["layer1.0.bn2.num_batches_tracked"]
    with pytest.raises(UserError, match=r"1 missing: layer1\.0\.bn2\.num_batches_tracked"):
        convert({"": tensors}, native, layouts_of(ResNet))


def test_a_counter_beyond_int32_is_refused():
    native, _, tensors = zoo_file("resnet", "")
    tensors["bn1.num_batches_tracked"] = np.array(2**31, np.int64)
    with pytest.raises(UserError, match=r"1 beyond int32: bn1\.num_batches_tracked"):
        convert({"": tensors}, native, layouts_of(ResNet))


def test_a_tar_archive_says_what_to_do(tmp_path):
    inner = tmp_path / "model.pth"
    torch.save({"w": torch.zeros(3)}, inner)
    with tarfile.open(tmp_path / "model.pth.tar", "w") as archive:
        archive.add(inner, "model.pth")
    with pytest.raises(UserError, match=r"tar archive.*holds model\.pth"):
        read_checkpoint(tmp_path / "model.pth.tar")


def test_a_stage_is_a_block():
    arch = dataclasses.replace(ARCH, depths=(2, 3, 1), widths=(3, 5, 7))
    assert arch.truncated(1).depths == (2, 3)
    assert arch.truncated(1).feature_width == 5 * arch.expansion
