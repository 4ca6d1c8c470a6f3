"""A run hands its network on: `backbone.run` in every protocol, through chains, and refused."""

import copy
import dataclasses
import json
import shutil
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_runs
from PIL import Image
from sealing import resealed
from tiny_backbones import TINY, fill
from tolerances import CKA, SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints, keep_models, model_sha256
from fmi_jax.artifacts.record import Ancestor, RunRecord
from fmi_jax.artifacts.result import Result
from fmi_jax.artifacts.weights import Provenance, fit_backbone, save_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.data import loader
from fmi_jax.data.prepared import DatasetInfo, open_dataset
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.errors import UsageError, UserError
from fmi_jax.fields import set_fields
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from fmi_jax.report.page import write_report
from fmi_jax.rules import validate
from fmi_jax.run import conclusion, experiment
from fmi_jax.run.assembly import assemble
from fmi_jax.run.features import describe
from fmi_jax.run.network import finished, pretrained, read_trained, started, trained_backbone
from fmi_jax.run.origin import _check_fits, _notes, find_origin
from fmi_jax.run.predict import predict
from fmi_jax.study.cells import cell_id
from fmi_jax.study.estimate import operations
from fmi_jax.study.plan import Missing
from fmi_jax.tasks.predictions import read_predictions

MESH = parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """Two steps on drawn squares, of two blocks with weights; beside them a brighter data set."""
    folder = tmp_path_factory.mktemp("squares")
    config = short_runs.prepare_squares(folder)
    for path in (folder / "raw").rglob("*.png"):
        bright = folder / "bright" / path.relative_to(folder / "raw")
        bright.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 90).save(bright)
    prepare(folder_spec("bright"), folder / "bright", folder / "data", size=16)
    config.protocol = "finetune"
    config.optim.warmup_steps = 0
    config.train.max_steps = 2
    config.train.eval_batch_size = 16
    config.train.bootstrap_samples = 0
    config.backbone.last_block = 1

    spec = BACKBONES["deit_nano"]
    drawn = fill(create_abstract(spec.family, spec.arch, Execution()), seed=5)
    source = Provenance(
        backbone=spec.name, tag="custom", source="drawn", source_sha256="0", layout="deit",
        licence="unknown", converter="test",
    )  # fmt: skip
    config.backbone.weights = str(folder / "deit_nano.drawn.safetensors")
    save_backbone(config.backbone.weights, parameters(drawn), spec.arch, source)
    return config


Change = Callable[..., ExperimentConfig]


@pytest.fixture(scope="module")
def changed(squares: ExperimentConfig) -> Change:
    """The config with other fields; `run` is the folder it starts from, in the place of weights."""

    def change(run: Path | None = None, **fields: object) -> ExperimentConfig:
        config = copy.deepcopy(squares)
        if run is not None:
            config.backbone.run, config.backbone.weights = str(run), ""
        set_fields(config, {name.replace("__", "."): value for name, value in fields.items()})
        return config

    return change


def run(config: ExperimentConfig, workdir: Path) -> Path:
    """The folder of the whole run."""
    short_runs.run(config, workdir)
    return workdir


def info_of(config: ExperimentConfig, name: str = "squares") -> DatasetInfo:
    return open_dataset(Path(config.data.data_dir), name, 16).info


def backbone_of(arrays: dict) -> dict[str, np.ndarray]:
    return {n: np.asarray(x) for n, x in arrays.items() if n.startswith("backbone.")}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def tuned(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned on squares; its network is the same one after it was left alone on disk."""
    workdir, seen = tmp_path_factory.mktemp("runs") / "tuned", []

    def keep(folder: Path, steps: Sequence[int]) -> None:
        seen.extend(model_sha256(folder, step) for step in steps)
        keep_models(folder, steps)

    with mock.patch.object(conclusion, "keep_models", keep):
        run(squares, workdir)
    assert seen == [model_sha256(workdir / "checkpoints", 2)]
    return workdir


@pytest.fixture(scope="module")
def twice(changed: Change, tuned: Path) -> Path:
    """The same, fine-tuned once more on the brighter squares."""
    return run(changed(tuned, data__name="bright"), tuned.parent / "twice")


@pytest.fixture(scope="module")
def probe(changed: Change, twice: Path) -> Path:
    """A linear probe on that."""
    config = changed(twice, data__name="bright", protocol="linear_probe")
    return run(config, twice.parent / "probe")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits of which images are read."""
    splits, original = [], loader.eval_batches

    def eval_batches(dataset, split, **options):
        splits.append(split)
        return original(dataset, split, **options)

    monkeypatch.setattr(loader, "eval_batches", eval_batches)
    return splits


def test_features_of_a_tuned_network_are_its_own(
    changed: Change, tuned: Path, read: list[str], tmp_path: Path
) -> None:
    """And never those that are kept of the network that it started from."""
    knn = {"protocol": "knn", "knn__k": (3, 5)}
    every = ["train", "val", "test"]
    before = short_runs.run(changed(**knn), tmp_path / "before")
    assert read == every
    config = changed(tuned, **knn)
    after = short_runs.run(config, tmp_path / "after")
    assert read == every * 2
    short_runs.run(config, tmp_path / "again")
    assert read == every * 2
    assert after.finding.values != before.finding.values

    kept = {}
    for path in (Path(config.data.data_dir) / "features").rglob("test-*.json"):
        about = json.loads(path.read_text())["about"]
        kept[about.get("run")] = np.load(path.with_suffix(".npy"))
    assert kept.keys() == {None, model_sha256(tuned / "checkpoints", 2)}
    trained = read_trained(tuned, MESH)
    dataset = open_dataset(Path(config.data.data_dir), "squares", 16)
    images = np.stack([dataset.image("test", i) for i in range(len(dataset.ids("test")))])
    scaled = jnp.asarray((images / 255 - dataset.info.mean) / dataset.info.std, jnp.float32)
    backbone = trained.assembly.partition.merge(trained.arrays).backbone
    expected = np.asarray(jax.jit(lambda x: backbone.features(x).pooled)(scaled))
    size = np.abs(expected).max()
    difference = {identity: np.abs(found - expected).max() for identity, found in kept.items()}
    assert difference.pop(None) > 1e-2 * size
    assert [*difference.values()] == pytest.approx([0], abs=float(5 * SAME_FLOAT32 * size))

    assert after.backbone["weights"] == f"run {tuned}"
    assert after.backbone["weights_sha256"] is None
    assert after.backbone["run_sha256"] in kept
    (note,) = (note for note in after.notes if note not in after.dataset["remarks"])
    assert note == (
        f"The backbone comes from the run in {tuned} (protocol 'finetune', data set 'squares')."
    )


def test_kept_features_of_earlier_versions_have_the_same_key(changed: Change, tuned: Path) -> None:
    config = changed(protocol="knn")
    dataset = open_dataset(Path(config.data.data_dir), "squares", 16)
    names = {
        *("fmi_jax", "backbone", "arch", "weights_sha256", "seed", "stem", "dtype", "platform"),
        *("image_size", "center_crop", "mean", "std", "manifest_sha256"),
    }
    of_weights = describe(pretrained(config, dataset.info, MESH), dataset)
    assert of_weights.keys() == names
    assert (len(of_weights["weights_sha256"]), of_weights["seed"]) == (64, None)
    config.backbone.weights = ""
    drawn = describe(pretrained(config, dataset.info, MESH), dataset)
    assert drawn == of_weights | {"weights_sha256": None, "seed": 0}
    found = describe(pretrained(changed(tuned, protocol="knn"), dataset.info, MESH), dataset)
    sha256 = model_sha256(tuned / "checkpoints", 2)
    assert found == drawn | {"seed": None, "stem": None, "run": sha256}
    other = changed(tuned, protocol="knn", backbone__stem="first", train__seed=3)
    assert describe(pretrained(other, dataset.info, MESH), dataset) == found


def test_a_chain_of_runs_keeps_its_pixels(
    changed: Change, tuned: Path, twice: Path, probe: Path
) -> None:
    own, other = info_of(changed(), "squares"), info_of(changed(), "bright")
    assert np.abs(np.subtract(own.mean, other.mean)).min() > 0.1
    result = Result.read(probe)
    pixels = {"dataset": "squares", "mean": [*own.mean], "std": [*own.std]}
    assert result.backbone["pixels"] == Result.read(twice).backbone["pixels"] == pixels
    assert "pixels" not in Result.read(tuned).backbone
    record = RunRecord.read(ExperimentConfig, probe)
    assert record is not None
    assert [Path(a.folder) for a in record.ancestors] == [twice, tuned]
    assert [a.sha256 for a in record.ancestors] == [
        model_sha256(folder / "checkpoints", 2) for folder in (twice, tuned)
    ]
    assert [note for note in result.notes if note not in result.dataset["remarks"]] == [
        f"The backbone comes from the run in {twice} (protocol 'finetune', data set 'bright'),"
        f" which started from the run in {tuned} (protocol 'finetune', data set 'squares').",
        f"Images are normalised by the mean and standard deviation of squares, as in {tuned}, and"
        " not by those of bright.",
        "Test images of bright may be among the images of squares that the backbone was trained"
        f" on in {tuned}: overlap was not checked.",
    ]
    page = write_report(probe).read_text()
    assert f"Starting from run {twice}" in page
    assert "overlap was not checked" in page
    # The frozen backbone is that of the run before, and each run has learned.
    backbones = [backbone_of(read_trained(folder).arrays) for folder in (tuned, twice, probe)]
    assert_same(backbones[1], backbones[2])
    name = "backbone.blocks.0.mlp.fc1.kernel"
    assert not np.array_equal(backbones[0][name], backbones[1][name])


def test_a_probe_on_another_run_predicts_as_it_was_tested(probe: Path, changed: Change) -> None:
    """Through the normalisation that its backbone was trained with, two runs before."""
    config = changed()
    bright = open_dataset(Path(config.data.data_dir), "bright", 16)
    info = bright.info
    expected = read_predictions(probe / "predictions.csv", info.label, info.classes).probabilities
    raw = Path(config.data.data_dir).parent / "bright"
    found = predict(probe, [raw / name for name in bright.ids("test")])
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)

    trained, pixels = read_trained(probe, MESH), info_of(config, "squares")
    images = np.stack([bright.image("test", i) for i in range(len(bright.ids("test")))]) / 255
    call = jax.jit(lambda x: trained.assembly.partition.merge(trained.arrays)(x))
    by_hand, other = (
        np.asarray(jax.nn.softmax(call(jnp.asarray((images - of.mean) / of.std, jnp.float32))))
        for of in (pixels, info)
    )
    np.testing.assert_allclose(by_hand, expected, atol=1e-5)
    assert np.abs(other - expected).max() > 1e-3


def test_adapters_are_merged(changed: Change, tuned: Path, tmp_path: Path) -> None:
    """On a tuned network that LoRA froze: what is handed on has the LoRA network's features."""
    adapted = run(changed(tuned, protocol="lora", lora__rank=2), tmp_path / "lora")
    info = info_of(changed())
    config = changed(adapted, protocol="linear_probe")
    networks = [
        finished(adapted, MESH),
        pretrained(config, info, MESH),
        pretrained(changed(tuned, protocol="linear_probe"), info, MESH),
    ]
    assert not [name for name in networks[1].arrays if "lora" in name]
    assert networks[0].identity == networks[1].identity
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)
    features = [
        np.asarray(
            jax.jit(lambda arrays, x, n=n: n.partition.merge(arrays).backbone.features(x).pooled)(
                n.arrays, x
            )
        )
        for n in networks
    ]
    size = np.abs(features[0]).max()
    np.testing.assert_allclose(features[1], features[0], rtol=0, atol=5 * SAME_FLOAT32 * size)
    assert np.abs(features[2] - features[0]).max() > 1e-4 * size


def test_running_statistics_are_handed_on(changed: Change, tmp_path: Path) -> None:
    config = changed(backbone__name="resnet_nano", backbone__weights="")
    workdir = run(config, tmp_path / "resnet")
    learned = backbone_of(read_trained(workdir).arrays)
    fresh = pretrained(config, info_of(config), MESH)
    network = pretrained(
        changed(workdir, backbone__name="resnet_nano", protocol="linear_probe"),
        info_of(config),
        MESH,
    )
    assert_same(backbone_of(network.arrays), learned)
    running = [name for name in learned if name.endswith((".mean", ".var"))]
    assert running
    assert all(np.any(learned[n] != np.asarray(fresh.arrays[n])) for n in running)


def leave(config: ExperimentConfig, workdir: Path, like: Path) -> dict[str, np.ndarray]:
    """What a finished run of `config` leaves, its arrays moved as if they had learned.

    Returns:
      Its backbone.
    """
    info = info_of(config)
    network = pretrained(config, info, MESH)
    arrays, parts = dict(network.arrays), network.partition
    for name in parts.params:
        arrays[name] = arrays[name] + 0.125
    workdir.mkdir()
    origin = find_origin(assemble(config, 3, 2), config, info)
    RunRecord(
        config=config,
        dataset=info.to_json(),
        weights_sha256=origin.weights_sha256,
        transformer_sha256=None,
        started="",
        ancestors=origin.ancestors,
    ).write(workdir)
    checkpoints = RunCheckpoints(workdir / "checkpoints")
    model = {
        "params": {name: arrays[name] for name in parts.params},
        "stats": {name: arrays[name] for name in parts.followers},
    }
    checkpoints.save(2, model, {"step": jnp.zeros(())}, {"best_step": 2})
    checkpoints.close()
    keep_models(workdir / "checkpoints", [2])
    shutil.copy(like / "result.json", workdir)
    return backbone_of(arrays)


@pytest.mark.parametrize(
    "protocol", ["partial", "attentive_probe", "stacked_probe", "stacked_finetune"]
)
def test_what_stands_on_a_backbone_is_left_behind(
    changed: Change, tuned: Path, tmp_path: Path, protocol: str
) -> None:
    config = changed(tuned, protocol=protocol)
    if protocol.startswith("stacked"):
        config.transformer.name = "deit_nano"
    if protocol == "partial":
        config.backbone.frozen_blocks = 1
    expected = leave(config, tmp_path / "run", tuned)
    before = backbone_of(read_trained(tuned).arrays)
    learned = {name for name in expected if not np.array_equal(expected[name], before[name])}
    assert bool(learned) == (protocol in ("partial", "stacked_finetune"))
    network = pretrained(changed(tmp_path / "run"), info_of(config), MESH)
    assert_same(backbone_of(network.arrays), expected)
    record = find_origin(assemble(network.config, 3, 2), network.config, info_of(config))
    assert [a.learned for a in record.ancestors] == [bool(learned), True]


def test_a_grid_of_heads_hands_its_backbone_on(
    changed: Change, tuned: Path, tmp_path: Path
) -> None:
    """On features that are kept of the tuned network."""
    config = changed(tuned, protocol="probe_grid", probe_grid__cached=True)
    config.optim.learning_rate = ExperimentConfig().optim.learning_rate
    config.probe_grid.learning_rates = (1e-3, 1e-2)
    workdir = run(config, tmp_path / "grid")
    network = pretrained(changed(workdir), info_of(config), MESH)
    assert_same(backbone_of(network.arrays), backbone_of(read_trained(tuned).arrays))
    sha256 = model_sha256(workdir / "checkpoints", 2)
    assert network.identity == {"run": sha256}
    chosen = Result.read(workdir).finding.values["chosen"]["learning_rate"]
    head = config.probe_grid.learning_rates.index(chosen)
    assert finished(workdir, MESH).identity == {"run": sha256, "head": head}


def test_every_network_lives_on_the_mesh_of_the_run(changed: Change, tuned: Path) -> None:
    """Also where "model" divides heads, and the other run did not."""
    mesh = parallel.make_mesh(2, devices=jax.devices()[:4])
    config = changed(tuned, train__model_parallel=2, train__sharding="fsdp")
    for network in (pretrained(config, info_of(config), mesh), finished(tuned, mesh)):
        assert {x.sharding.mesh for x in network.arrays.values()} == {mesh}
        assert network.arrays["backbone.blocks.0.attn.qkv.kernel"].shape == (64, 3, 64)
    expected = trained_backbone(read_trained(tuned, MESH))
    assert_same(trained_backbone(read_trained(tuned, mesh)), expected)


def analysed(config: ExperimentConfig, workdir: Path) -> Result:
    on_mesh = mock.patch.object(parallel, "make_mesh", return_value=MESH)
    with on_mesh, mock.patch.object(conclusion, "write_report"):
        found = experiment.run(config, workdir)
    assert not found.finding.evaluations
    return found


def test_similarity_of_a_handed_on_network(
    changed: Change, tuned: Path, probe: Path, tmp_path: Path
) -> None:
    config = changed(tuned, protocol="cka", cka__other=(str(tuned),), cka__batch_size=8)
    found = analysed(config, tmp_path / "one")
    values = found.finding.values
    assert values["networks"][0] == "deit_nano, from tuned"
    assert values["pairs"][0]["cka"][-1][-1] == pytest.approx(1, abs=CKA)
    assert f"The backbone comes from the run in {tuned} " in found.all_notes[0]
    assert found.backbone["run"] == str(tuned)
    # "pretrained" is what a run started from: of a probe on another run that run's backbone.
    config = changed(protocol="cka", cka__run=str(probe), cka__batch_size=8)
    pair = analysed(config, tmp_path / "two").finding.values["pairs"][0]
    assert pair["networks"][1] == "deit_nano, from twice"
    assert pair["cka"][-1][-1] == pytest.approx(1, abs=CKA)


def test_time_is_taken_without_reading_weights(
    changed: Change, tuned: Path, tmp_path: Path
) -> None:
    config = changed(tuned, protocol="timing")
    config.timing = dataclasses.replace(
        config.timing, reference="deit_nano", repeats=1, batch_size=2
    )
    found = analysed(config, tmp_path)
    assert len(found.finding.values["rows"]) == 2
    assert found.backbone["run"] == str(tuned)


@pytest.fixture
def stale(changed: Change, tuned: Path, twice: Path, tmp_path: Path) -> Path:
    """A finished probe on a run in `parent`, where another network has been trained since."""
    shutil.copytree(tuned, tmp_path / "parent")
    probe = run(changed(tmp_path / "parent", protocol="linear_probe"), tmp_path / "probe")
    shutil.rmtree(tmp_path / "parent")
    shutil.copytree(twice, tmp_path / "parent")
    return probe


def test_another_network_in_the_folder_is_noticed(
    stale: Path, changed: Change, tuned: Path, twice: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    then, now = (model_sha256(folder / "checkpoints", 2) for folder in (tuned, twice))
    message = f"backbone.run={parent} does not hold .* sha256 is {now}, expected {then}. Put that"
    with pytest.raises(UserError, match=message):
        short_runs.run(changed(parent, protocol="linear_probe"), stale)
    with pytest.raises(UserError, match=message):
        read_trained(stale)
    with pytest.raises(UserError, match=f"^backbone.run: {message}"):
        short_runs.run(changed(stale, protocol="knn", knn__k=(3,)), tmp_path / "knn")
    assert not (tmp_path / "knn" / "run.json").exists()
    # What has learned all of its backbone needs no other run, but to say what it was before.
    shutil.copytree(twice, tmp_path / "alone")
    with resealed(tmp_path / "alone" / "run.json") as record:
        record["config"]["backbone"]["run"] = str(parent)
    with pytest.raises(UserError, match=f"backbone.run={parent} does not hold"):
        started(tmp_path / "alone", info_of(changed()), MESH)
    shutil.rmtree(parent)
    assert read_trained(tmp_path / "alone").pixels.name == "squares"


def unfinished(folder: Path) -> None:
    (folder / "result.json").unlink()


def flipped(folder: Path) -> None:
    path = max((folder / "checkpoints" / "2" / "model").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def unsealed(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def without_network(folder: Path) -> None:
    with resealed(folder / "run.json") as record:
        record["config"]["protocol"] = "knn"


def grey(folder: Path) -> None:
    with resealed(folder / "run.json") as record:
        record["dataset"] |= {"channels": 1, "mean": [0.5], "std": [0.2]}


@pytest.mark.parametrize(
    ("damage", "fields", "message"),
    [
        (shutil.rmtree, {}, "copy holds no result.json: expected the folder of a finished run"),
        (unfinished, {}, "copy holds no result.json: expected the folder of a finished run"),
        (flipped, {}, r"step 2 in .*copy/checkpoints: 1 file\(s\) differ from the manifest"),
        (unsealed, {}, "step 2 in .*copy/checkpoints: it"),
        (without_network, {}, "protocol 'knn', which trains no network: expected .* 'finetune'"),
        (
            grey,
            {},
            r"takes images of 1 channel\(s\), and those of squares have 3; expected a run on such",
        ),
        (
            None,
            {"backbone__name": "resnet_nano"},
            "a run of deit_nano, and backbone.name is 'resnet_nano': expected a run of resnet_nano,"
            " or --config.backbone.name=deit_nano",
        ),
        (
            None,
            {"backbone__last_block": -1},
            r"kept 2 block\(s\) .*last_block=1\), and this config needs 3; expected"
            " --config.backbone.last_block=1 or less",
        ),
        (
            None,
            {"backbone__weights": "in1k"},
            "are both set: expected one of them .--config.backbone.weights= empties it",
        ),
    ],
)
def test_what_cannot_be_handed_on(
    changed: Change,
    tuned: Path,
    tmp_path: Path,
    damage: Callable[[Path], None] | None,
    fields: dict[str, object],
    message: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tuned, folder)
    if damage is not None:
        damage(folder)
    with pytest.raises(UserError, match=f"backbone.run.*{message}"):
        short_runs.run(changed(folder, **fields), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    assert damage in (None, unsealed) or not (folder / "checkpoints" / "damaged").exists()


def test_fewer_blocks_and_another_size_are_fine(changed: Change, tuned: Path) -> None:
    config = changed(tuned, backbone__last_block=0, image_size=24, backbone__drop_path=0.1)
    network = pretrained(config, info_of(config), MESH)
    expected = backbone_of(read_trained(tuned).arrays)
    kept = {name: x for name, x in expected.items() if not name.startswith("backbone.blocks.1.")}
    assert_same(backbone_of(network.arrays), kept)


def test_positions_are_resized_as_those_of_weights_are() -> None:
    tiny = TINY["open_clip"]
    source, arch = tiny.arch.sized(25, 25), tiny.arch.sized(35, 35).truncated(1)
    spec = types.SimpleNamespace(family=tiny.family)
    held = parameters(fill(create_abstract(tiny.family, source, Execution())))
    held = {name: np.asarray(value) for name, value in held.items()}
    found = fit_backbone("a run", held, spec, source, arch)  # type: ignore[arg-type]
    resized = tiny.family.adapt(held, source, arch)
    np.testing.assert_array_equal(found["pos_embed"], resized["pos_embed"])
    assert not [name for name in found if name.startswith("blocks.2.")]


def test_another_readout_is_refused() -> None:
    """The network was trained through it."""

    def part(readout: str) -> types.SimpleNamespace:
        arch = dataclasses.replace(TINY["blip"].arch, readout=readout)
        return types.SimpleNamespace(spec=types.SimpleNamespace(name="tiny"), arch=arch)

    run = types.SimpleNamespace(
        workdir="runs/x", assembly=part("first_patch"), config=ExperimentConfig()
    )
    with pytest.raises(UsageError, match=r"expected --config\.backbone\.readout=first_patch"):
        _check_fits(run, part("cls"), run.config, None)  # type: ignore[arg-type]
    _check_fits(run, part("first_patch"), run.config, None)  # type: ignore[arg-type]


def test_notes_say_where_test_images_may_have_been_seen(changed: Change) -> None:
    info = info_of(changed())

    def notes(learned: bool = True, **differences: str) -> str:
        there = dataclasses.replace(info, **differences)
        ancestor = Ancestor(
            folder="runs/a", sha256="", protocol="finetune", learned=learned,
            dataset=there.to_json(),
        )  # fmt: skip
        return " ".join(_notes([ancestor, ancestor], info)[1:])

    other = {"split": "other", "split_sha256": "ab", "manifest_sha256": "cd"}
    assert not notes()
    assert not notes(manifest_sha256="cd")  # another size, the same split
    assert not notes(split_sha256="ab")  # a part of the same training images
    assert not notes(learned=False, **other)
    assert notes(**other) == (
        "The backbone was trained in runs/a on another split of squares ('other' there,"
        f" {info.split!r} here): test images may have been training images."
    )
    assert "may be among the images of circles" in notes(name="circles")
    assert "overlap was not checked" in notes(name="circles")


def test_a_study_counts_and_names_cells_on_another_run(changed: Change, tuned: Path) -> None:
    plain = changed(protocol="linear_probe")
    cells = {cell_id(plain), cell_id(changed(tuned, protocol="linear_probe"))}
    assert len(cells) == 2
    config = changed(Path("nowhere"), protocol="linear_probe")
    validate(copy.deepcopy(config))
    assert operations(config) == operations(plain) is not None
    missing = Missing()
    (message,) = missing.of(config)
    assert message.startswith("backbone.run: nowhere holds no result.json")
    assert not missing.of(changed(tuned, protocol="linear_probe"))
