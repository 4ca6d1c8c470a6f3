"""LoRA: the frozen network at first, adapters alone in checkpoints, plain weights at the end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import short_runs
from flax import nnx
from safetensors.numpy import load_file
from tiny_backbones import TINY
from tolerances import SAME_FLOAT32

from fmi_jax.artifacts.weights import Provenance, save_backbone
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn.lora import LoRALinear
from fmi_jax.protocols.adapt.lora import LoraConfig, add_adapters, merge_adapters
from fmi_jax.run.assembly import assemble
from fmi_jax.run.network import read_trained, whole_backbone
from fmi_jax.training.partition import partition
from weights_convert.cli import main as weights_convert

ALL = ("q", "v", "proj", "mlp")
CONVOLUTIONAL = ("resnet", "convnext")  # have neither queries nor values
FAMILIES = {tiny.family: name for name, tiny in TINY.items() if name not in CONVOLUTIONAL}


def is_adapter(name):
    return name.endswith((".lora_a", ".lora_b"))


def arch_of(name, last_block=None):
    tiny = TINY[name]
    arch = tiny.arch.sized(tiny.side, tiny.side)
    return arch.truncated(arch.num_blocks - 1 if last_block is None else last_block)


def adapted(name, targets=ALL, last_block=None):
    backbone = TINY[name].family(arch_of(name, last_block), Execution(), rngs=nnx.Rngs(0))
    add_adapters(backbone, targets, rank=2, alpha=6.0, rngs=nnx.Rngs(1))
    return backbone


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_its_base_and_a_product_for_each_part(bias):
    rng = np.random.default_rng(2)
    base = nnx.Linear(5, 21, use_bias=bias, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    before = base(x)
    layer = LoRALinear(base, (0, 14), 7, rank=2, scale=1.5, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(layer(x), before)
    a = np.asarray(layer.lora_a[...])
    assert np.abs(a).max() <= 5**-0.5  # as in the paper's code
    b = rng.normal(size=(4, 7)).astype(np.float32)
    layer.lora_b[...] = jnp.asarray(b)
    expected = np.array(before)
    expected[..., :7] += 1.5 * np.asarray(x) @ a[:, :2] @ b[:2]
    expected[..., 14:] += 1.5 * np.asarray(x) @ a[:, 2:] @ b[2:]
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=5 * SAME_FLOAT32)
    np.testing.assert_array_equal(layer(x)[..., 7:14], before[..., 7:14])
    merged = layer.merged()
    assert type(merged) is nnx.Linear
    np.testing.assert_allclose(merged(x), expected, rtol=0, atol=5 * SAME_FLOAT32)


@pytest.mark.parametrize("name", FAMILIES.values())
def test_every_block_of_every_family_is_adapted_and_keeps_its_names(name):
    arch = arch_of(name)
    base = parameters(create_abstract(TINY[name].family, arch, Execution()))
    layers = {}
    for targets in (("q",), ("v", "proj"), ALL):
        held = parameters(nnx.eval_shape(lambda t=targets: adapted(name, t)))
        added = held.keys() - base.keys()
        assert {n: held[n].shape for n in base} == {n: x.shape for n, x in base.items()}
        assert all(is_adapter(n) for n in added)
        layers[targets] = {n.rsplit(".", 1)[0] for n in added}
        assert {int(n.split(".")[1]) for n in added} == set(range(arch.num_blocks))
    assert layers[("q",)] < layers[("v", "proj")] < layers[ALL]
    kernels = {n for n in base if n.startswith("blocks.") and n.endswith("kernel")}
    left = {n.removesuffix(".kernel").split(".")[-1] for n in kernels} - {
        n.split(".")[-1] for n in layers[ALL]
    }
    # What is left: convolutions (SEEM's MLP has two), the layers between stages, those that pool
    # windows, and a modulation's own projection of its context.
    assert not {n for n in left if not n.isdecimal()} - {"dw1", "dw2", "reduction", "h"}


def test_a_convnext_has_mlps_to_adapt():
    with pytest.raises(UsageError, match=r"no linear layer q, v .* lora\.targets=\('mlp',\)"):
        adapted("convnext", ("q", "v"))
    held = parameters(nnx.eval_shape(lambda: adapted("convnext", ("mlp",))))
    layers = {n.rsplit(".", 1)[0] for n in held if is_adapter(n)}
    kernels = {n for n in held if n.endswith(("fc1.kernel", "fc2.kernel"))}
    assert layers == {n.removesuffix(".kernel") for n in kernels} != set()


@pytest.mark.parametrize("name", ["dinov2_reg", "focalnet", "focal_transformer"])
def test_it_starts_as_the_frozen_network_and_ends_as_a_plain_one(name):
    tiny = TINY[name]
    part = partition(nnx.eval_shape(lambda: adapted(name, last_block=0)), is_adapter)
    plain = create_abstract(tiny.family, arch_of(name, 0), Execution())
    plain = partition(plain, lambda name: True)
    assert set(part.params) == set(part.variables) - set(plain.variables)
    rng = np.random.default_rng(0)
    shapes = part.shapes(tuple(part.variables))
    arrays = {n: rng.normal(size=s.shape).astype(np.float32) / 4 for n, s in shapes.items()}
    zeros = {n: 0 * x if n.endswith("lora_b") else x for n, x in arrays.items()}
    images = jnp.asarray(rng.normal(size=(2, tiny.side, tiny.side, 3)), jnp.float32)
    compute = jax.jit(lambda arrays, x: part.merge(arrays).features(x).tokens)
    compute_plain = jax.jit(lambda arrays, x: plain.merge(arrays).features(x).tokens)
    frozen = {n: arrays[n] for n in plain.variables}
    np.testing.assert_array_equal(compute(zeros, images), compute_plain(frozen, images))

    @jax.jit
    def merge(arrays):
        model = part.merge(arrays)
        merge_adapters(model)
        return parameters(model)

    with_adapters, merged = compute(arrays, images), compute_plain(merge(arrays), images)
    size = np.abs(with_adapters).max()
    assert np.abs(with_adapters - compute_plain(frozen, images)).max() > 1e-3 * size
    np.testing.assert_allclose(merged, with_adapters, rtol=0, atol=SAME_FLOAT32 * size)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A config on pretrained weights."""
    folder = tmp_path_factory.mktemp("squares")
    config = short_runs.prepare_squares(folder)
    config.protocol = "lora"
    config.lora.rank = 2
    spec = BACKBONES["deit_nano"]
    rng = np.random.default_rng(5)
    native = parameters(create_abstract(spec.family, spec.arch, Execution()))
    params = {n: rng.normal(size=x.shape).astype(np.float32) / 8 for n, x in native.items()}
    provenance = Provenance(
        backbone=spec.name, tag="custom", source="drawn", source_sha256="0", layout="deit",
        licence="unknown", converter="test",
    )  # fmt: skip
    config.backbone.weights = str(folder / "deit_nano.safetensors")
    config.backbone.last_block = -1
    save_backbone(config.backbone.weights, params, spec.arch, provenance)
    return config


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    short_runs.run(squares, workdir)
    return workdir


def test_adapters_learn_on_any_number_of_devices_and_after_a_stop(squares, whole, tmp_path):
    losses = short_runs.losses(whole)
    short_runs.run_stopped(squares, tmp_path / "stopped", after=4)
    found = tmp_path / "stopped" / "metrics.jsonl"
    assert found.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    short_runs.run(squares, tmp_path / "eight", devices=8)
    np.testing.assert_allclose(short_runs.losses(tmp_path / "eight"), losses, rtol=1e-5)


def test_adapters_and_head_alone_are_in_the_checkpoints(squares, whole):
    trained = read_trained(whole)
    learned = trained.assembly.partition.params
    assert {n for n in learned if not is_adapter(n)} == {"head.kernel", "head.bias"}
    weights = load_file(squares.backbone.weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(trained.arrays["backbone." + name], value, err_msg=name)
    assert all(np.any(trained.arrays[n]) for n in learned if n.endswith("lora_b"))
    newest = whole.resolve() / "checkpoints" / "6"
    stored = ocp.StandardCheckpointer().restore(newest / "model")["params"]
    assert stored.keys() == set(learned)
    held = sum(value.nbytes for value in stored.values())
    assert held == 4 * (3 * (2 * 2 * 64 + 2 * 2 * 64) + 2 * 64 + 2)
    # Adam keeps two numbers more for each, and Orbax descriptions of them all.
    on_disk = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    assert on_disk < sum(value.nbytes for value in weights.values()) / 2


def test_the_exported_network_computes_what_the_run_computes(squares, whole, tmp_path):
    run = read_trained(whole)
    _, params = whole_backbone(run)
    weights = load_file(squares.backbone.weights)
    assert params.keys() == weights.keys()
    changed = {name for name in params if not np.array_equal(params[name], weights[name])}
    assert changed == {f"blocks.{i}.attn.qkv.kernel" for i in range(3)}
    name = "blocks.1.attn.qkv.kernel"
    np.testing.assert_array_equal(params[name][:, 64:128], weights[name][:, 64:128])  # keys

    as_probe = dataclasses.replace(squares, protocol="linear_probe", lora=LoraConfig())
    probe = assemble(as_probe, channels=3, num_classes=2).partition
    arrays = {f"backbone.{name}": value for name, value in params.items()}
    arrays |= {name: run.arrays[name] for name in ("head.kernel", "head.bias")}
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)
    logits = [
        jax.jit(lambda arrays, x, part=part: part.merge(arrays)(x))(held, images)
        for part, held in ((run.assembly.partition, run.arrays), (probe, arrays))
    ]
    size = np.abs(logits[0]).max()
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=SAME_FLOAT32 * size)

    command = ["deit_nano", "--checkpoint", str(whole), "--out", str(tmp_path), "--export", "timm"]
    assert weights_convert(command) == 0
    (exported,) = tmp_path.iterdir()
    published = load_file(exported)
    np.testing.assert_array_equal(published["blocks.1.attn.qkv.weight"], params[name].T)
    assert "head.weight" in published


def refused(squares, message, **changes):
    config = dataclasses.replace(squares, backbone=dataclasses.replace(squares.backbone))
    config.lora = dataclasses.replace(config.lora, **changes)
    config.backbone.weights = ""
    return config, pytest.raises(UsageError, match=message)


def test_what_has_nothing_to_adapt_is_refused(squares):
    message = "ResNet has no linear layer q, v in its blocks: expected .* 'finetune'"
    config, refusal = refused(squares, message)
    config.backbone.name = "resnet50"
    with refusal:
        assemble(config, channels=3, num_classes=2)
    config, refusal = refused(squares, "lora.rank=64: expected less than 64", rank=64)
    with refusal:
        assemble(config, channels=3, num_classes=2)
