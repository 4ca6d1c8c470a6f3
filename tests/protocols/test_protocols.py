"""Protocols: which classifier they build, what of it learns, and what they refuse."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import short_runs
from flax import nnx
from tiny_backbones import ONE_PER_FAMILY, TINY
from tolerances import LOSS_ON_DEVICES

from fmi_jax import parallel
from fmi_jax.artifacts.record import RunRecord
from fmi_jax.artifacts.result import Result
from fmi_jax.artifacts.weights import Provenance, save_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.deit import DeiT, DeiTArch, TokenDeiT
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.adapt import partial
from fmi_jax.protocols.registry import PROTOCOLS, check_read
from fmi_jax.protocols.spec import Parts
from fmi_jax.run.assembly import assemble, placement_of
from fmi_jax.run.network import initial_arrays, read_trained
from fmi_jax.training.partition import Partition, partition

DEIT = DeiTArch(
    in_channels=3,
    patch_size=5,
    width=22,
    depth=1,
    num_heads=2,
    mlp_width=13,
    distilled=False,
    grid_size=3,
    norm_eps=1e-6,
)


def config_of(protocol: str, **backbone: object) -> ExperimentConfig:
    config = ExperimentConfig(protocol=protocol)
    for name, value in backbone.items():
        setattr(config.backbone, name, value)
    return config


def maker(name: str, protocol: str, last: int, drop_path: float = 0.0):
    """Creates a protocol's classifier on a tiny network that ends after block `last`."""
    tiny, spec = TINY[name], PROTOCOLS[protocol]
    arch = tiny.arch.sized(tiny.side, tiny.side).truncated(last)

    def make() -> nnx.Module:
        rngs = nnx.Rngs(5)
        deit = TokenDeiT(DEIT.on_tokens(), Execution(), rngs=rngs)
        foundation = tiny.family(arch, Execution(drop_path=drop_path), rngs=rngs)
        return spec.fit.fit(config_of(protocol), arch).module(
            Parts(
                backbone=foundation,
                transformer=deit if spec.fit.transformer else None,
                num_classes=7,
                config=config_of(protocol),
                rngs=rngs,
            )
        )

    return make


def divided(model: nnx.Module, protocol: str, **backbone: object) -> Partition:
    """What a protocol trains of a classifier."""
    fit = PROTOCOLS[protocol].fit.fit(config_of(protocol, **backbone), model.backbone.arch)
    return partition(model, fit.learns)


def learned_of(part: Partition) -> set[str]:
    return {name for name in part.params if name.startswith("backbone.")}


def variables_of(part: Partition) -> set[str]:
    return {n for n, (_, v) in part.variables.items() if isinstance(v, nnx.Param)}


def test_every_protocol_is_documented() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "protocols.md").read_text()
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert not [name for name in PROTOCOLS if name not in rows]


@pytest.mark.parametrize("name", ONE_PER_FAMILY.values())
def test_what_learns(name: str) -> None:
    blocks = TINY[name].arch.num_blocks
    models = {
        protocol: nnx.eval_shape(maker(name, protocol, blocks - 1))
        for protocol in ("linear_probe", "stacked_probe", "partial", "stacked_partial")
    }
    everything = variables_of(divided(models["partial"], "finetune"))
    foundation = {n for n in everything if n.startswith("backbone.")}
    assert learned_of(divided(models["stacked_partial"], "stacked_finetune")) == foundation
    for protocol in ("linear_probe", "stacked_probe"):
        part = divided(models[protocol], protocol)
        assert not learned_of(part)
        assert {n for n in variables_of(part) if not n.startswith("backbone.")} == {*part.params}
    for frozen in range(blocks):
        left = tuple(f"backbone.blocks.{i}." for i in range(frozen, blocks))
        for protocol in ("partial", "stacked_partial"):
            part = divided(models[protocol], protocol, frozen_blocks=frozen)
            assert learned_of(part) == {n for n in foundation if n.startswith(left)} != set()
            assert "head.kernel" in part.params


@pytest.mark.parametrize("name", ["resnet", "seem"])
def test_a_partly_frozen_backbone_is_in_evaluation_mode_and_its_last_blocks_learn(
    name: str,
) -> None:
    tiny = TINY[name]
    make = maker(name, "partial", last=1, drop_path=0.0 if name == "resnet" else 0.9)
    part = divided(nnx.eval_shape(make), "partial", frozen_blocks=1)
    rng = np.random.default_rng(3)
    images = rng.normal(size=(3, tiny.side, tiny.side, 3)).astype(np.float32)

    def drawn(names):  # positive, as variances must be
        shapes = part.shapes(names).items()
        return {n: rng.uniform(0.05, 0.5, s.shape).astype(s.dtype) for n, s in shapes}

    params, stats, frozen = drawn(part.params), drawn(part.followers), drawn(part.frozen)

    @jax.jit
    def run(params, stats, frozen, images, key):
        def loss(params):
            model = part.merge(params, stats, frozen)
            logits = model(images, rngs=nnx.Rngs(dropout=key))
            return (logits**2).sum(), (logits, part.read(model, part.followers))

        return jax.grad(loss, has_aux=True)(params)

    given = (params, stats, frozen, images)
    gradients, (logits, moved) = run(*given, jax.random.key(1))
    _, (other, _) = run(*given, jax.random.key(2))
    np.testing.assert_array_equal(logits, other)  # no path is dropped
    jax.tree.map(np.testing.assert_array_equal, stats, moved)
    assert bool(stats) == (name == "resnet")
    assert not [n for n, g in gradients.items() if not np.any(g)]
    assert {n.split(".")[2] for n in gradients if n.startswith("backbone.")} == {"1"}


@pytest.mark.parametrize("protocol", ["partial", "stacked_partial"])
@pytest.mark.parametrize(("name", "frozen", "last"), [("resnet50", 4, -1), ("sam_vit_b", 9, 5)])
def test_nothing_left_to_learn_is_refused(protocol, name, frozen, last) -> None:
    config = config_of(protocol, name=name, frozen_blocks=frozen, last_block=last)
    blocks = last + 1 if last >= 0 else 4
    with pytest.raises(UsageError) as refusal:
        partial.learns(config, BACKBONES[name].arch.truncated(blocks - 1))
    assert f"frozen_blocks={frozen}: {name} has {blocks} blocks here" in str(refusal.value)
    assert f"expected 0 to {blocks - 1}" in str(refusal.value)


@pytest.mark.parametrize(
    ("protocol", "field", "value"),
    [
        ("finetune", "backbone.frozen_blocks", 2),
        ("linear_probe", "optim.layer_decay", 0.7),
        ("linear_probe", "knn.k", (5, 7)),
        ("partial", "transformer.weights", "in1k"),
        ("stacked_finetune", "probe_grid.seeds", 3),
    ],
)
def test_a_setting_of_another_protocol_is_refused(protocol, field, value) -> None:
    config = ExperimentConfig(protocol=protocol)
    section, name = field.split(".")
    check_read(config)
    setattr(getattr(config, section), name, value)
    with pytest.raises(UsageError, match=f"'{protocol}' does not read {field}"):
        check_read(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("transformer.name", "deit_bse", "Did you mean 'deit_base'"),
        ("transformer.name", "sam_vit_b", "unknown transformer"),
        ("transformer.weights", "in21k", "transformer.weights='in21k': there is no .*tags: in1k"),
        ("backbone.last_block", 3, "block 3 does not exist: this backbone has blocks 0 to 2"),
        ("image_size", 1021, "nearest to 1021 is 1024"),
    ],
)
def test_parts_that_do_not_exist_are_refused(field, value, message, tmp_path) -> None:
    config = config_of("stacked_probe", name="deit_nano", weights_dir=str(tmp_path))
    *section, name = field.split(".")
    setattr(getattr(config, section[0]) if section else config, name, value)
    with pytest.raises(UsageError, match=message):
        assemble(config, channels=3, num_classes=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with converted weights of deit_nano, of no published source."""
    folder = tmp_path_factory.mktemp("weights")
    arch = BACKBONES["deit_nano"].arch
    rng = np.random.default_rng(7)
    params = {
        name: rng.normal(0, 0.05, value.shape).astype(np.float32)
        for name, value in parameters(create_abstract(DeiT, arch, Execution())).items()
    }
    provenance = Provenance(
        backbone="deit_nano",
        tag="drawn",
        source="a test",
        source_sha256="0" * 64,
        layout="deit",
        licence="unknown",
        converter="0",
    )
    save_backbone(folder / "deit_nano.drawn.safetensors", params, arch, provenance)
    np.savez(folder / "params.npz", **params)
    return folder


def test_the_transformer_starts_from_its_weights(weights: Path) -> None:
    config = config_of("stacked_probe", name="deit_nano", last_block=0, weights_dir=str(weights))
    config.image_size = 40  # a grid of 5 x 5; that of the weights is 12 x 12
    config.transformer = dataclasses.replace(config.transformer, name="deit_nano", weights="drawn")
    assembly = assemble(config, channels=3, num_classes=2)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    arrays = initial_arrays(assembly, config, placement_of(assembly, config, mesh))
    expected = dict(np.load(weights / "params.npz"))
    held = {
        n.removeprefix("transformer."): v for n, v in arrays.items() if n.startswith("transformer.")
    }
    dropped = {n for n in expected if n.startswith("patch_embed.")}
    assert dropped
    assert held.keys() == expected.keys() - dropped
    for name, value in held.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    different = np.asarray(arrays["backbone.blocks.0.attn.qkv.kernel"])
    assert not np.array_equal(different, expected["blocks.0.attn.qkv.kernel"])


@pytest.fixture(scope="module")
def squares(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """A DeiT on the tokens of a partly frozen backbone, over two classes of images."""
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.protocol = "stacked_partial"
    config.backbone.last_block = 1
    config.backbone.frozen_blocks = 1
    config.backbone.weights = "drawn"
    config.backbone.weights_dir = str(weights)
    config.transformer.name = "deit_nano"
    config.transformer.weights = "drawn"
    config.optim.learning_rate = 3e-4
    return config


@pytest.fixture(scope="module")
def whole(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run on one device."""
    workdir = tmp_path_factory.mktemp("whole")
    short_runs.run(squares, workdir)
    return workdir


def test_a_run_records_the_transformer_and_keeps_what_is_frozen(whole: Path) -> None:
    result = Result.read(whole)
    record = json.loads((whole / "run.json").read_text())
    assert result.backbone["transformer"] == "deit_nano"
    assert result.backbone["transformer_weights"] == "drawn"
    assert result.backbone["transformer_weights_sha256"] == record["transformer_sha256"]
    assert len(record["transformer_sha256"]) == 64
    # After six steps it may well have learned nothing, which is said.
    about_data = (*result.dataset["remarks"], *result.finding.notes)
    notes = [note for note in result.all_notes if note not in about_data]
    assert not [note for note in notes if "Only one class is predicted" not in note]
    run = read_trained(whole)
    expected = dict(np.load(Path(run.config.backbone.weights_dir) / "params.npz"))
    for name, value in expected.items():
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        if block == "2":  # cut off
            assert f"backbone.{name}" not in run.arrays
        else:
            same = np.array_equal(run.arrays[f"backbone.{name}"], value)
            assert same == (block != "1"), name
    assert not np.array_equal(run.arrays["transformer.cls_token"], expected["cls_token"])


def test_stopped_and_resumed_it_ends_the_same(
    squares: ExperimentConfig, whole: Path, tmp_path: Path
) -> None:
    short_runs.run_stopped(squares, tmp_path, after=4)
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_on_eight_devices_it_is_the_same(
    squares: ExperimentConfig, whole: Path, tmp_path: Path
) -> None:
    short_runs.run(squares, tmp_path, devices=8)
    np.testing.assert_allclose(
        short_runs.losses(tmp_path), short_runs.losses(whole), rtol=LOSS_ON_DEVICES
    )


def test_other_transformer_weights_are_another_run(squares: ExperimentConfig, whole: Path) -> None:
    transformer = dataclasses.replace(squares.transformer, weights="")
    with pytest.raises(UsageError) as refusal:
        short_runs.run(dataclasses.replace(squares, transformer=transformer), whole)
    assert "transformer.weights: 'drawn' there, '' now" in str(refusal.value)
    assert "transformer sha256" in str(refusal.value)


def test_a_run_that_trained_nothing_has_no_network(tmp_path: Path) -> None:
    RunRecord(
        config=ExperimentConfig(protocol="knn"),
        dataset={},
        weights_sha256=None,
        transformer_sha256=None,
        started="",
    ).write(tmp_path)
    with pytest.raises(UserError, match="a run of protocol 'knn', which trains no network"):
        read_trained(tmp_path)
