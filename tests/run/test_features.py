"""Features kept on disk: those of every image, computed once, and nothing broken is believed."""

import dataclasses
import fcntl
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from tolerances import SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.config import ExperimentConfig
from fmi_jax.data import loader
from fmi_jax.data.prepared import PreparedDataset, open_dataset
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.data.subset import training_subset
from fmi_jax.errors import UserError
from fmi_jax.protocols.judging import Network, SplitFeatures
from fmi_jax.run import features
from fmi_jax.run.network import pretrained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43, 9 and 9 prepared images of two classes."""
    folder = tmp_path_factory.mktemp("squares")
    runs.draw_squares(folder / "raw")
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    return folder


@pytest.fixture(scope="module")
def dataset(root: Path) -> PreparedDataset:
    return open_dataset(root / "data", "squares", 16)


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    config = ExperimentConfig(protocol="knn", image_size=16)
    config.augment.center_crop = 1.0
    config.backbone.name = "deit_nano"
    config.backbone.last_block = 0
    config.train.batch_size = 8
    config.data.threads = 1
    return config


@pytest.fixture(scope="module")
def network(config: ExperimentConfig, dataset: PreparedDataset) -> Network:
    """On one device."""
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    return pretrained(config, dataset.info, mesh)


Extract = Callable[..., dict[str, SplitFeatures]]


@pytest.fixture
def extract(network: Network, dataset: PreparedDataset, tmp_path: Path) -> Extract:
    """`features.extract` on one device into an empty folder; `computed` counts its batches."""

    def call(**changes) -> dict[str, SplitFeatures]:
        arguments = {
            "network": network,
            "dataset": dataset,
            "folder": tmp_path / "features",
            "mesh": parallel.make_mesh(devices=jax.devices()[:1]),
            "say": lambda line: None,
        }
        return features.extract(**(arguments | changes))

    return call


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits of which images are read."""
    splits = []
    original = loader.eval_batches

    def eval_batches(dataset, split, **options):
        splits.append(split)
        return original(dataset, split, **options)

    monkeypatch.setattr(loader, "eval_batches", eval_batches)
    return splits


def test_every_image_has_the_feature_of_the_backbone_on_any_number_of_devices(
    extract: Extract, network: Network, config: ExperimentConfig, dataset: PreparedDataset, tmp_path
) -> None:
    found = extract()
    everywhere = parallel.make_mesh()
    assert everywhere.size == 8
    divided = extract(
        network=pretrained(config, dataset.info, everywhere),
        mesh=everywhere,
        folder=tmp_path / "other",
    )
    backbone = network.partition.merge(network.arrays).backbone
    for split in SPLITS:
        images = np.stack([dataset.image(split, i) for i in range(len(dataset.ids(split)))])
        expected = jax.jit(lambda x: backbone.features(network.preprocess(x)).pooled)(images)
        assert found[split].features.dtype == np.float32
        for each in (found[split], divided[split]):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                each.features / scale, expected / scale, atol=SAME_FLOAT32, rtol=0
            )
            np.testing.assert_array_equal(each.labels, dataset.labels(split))
            assert each.ids == dataset.ids(split)


def test_what_is_kept_is_not_computed_again(extract: Extract, read: list[str]) -> None:
    first = extract()
    assert read == [*SPLITS]
    again = extract()
    assert read == [*SPLITS]
    for split in SPLITS:
        np.testing.assert_array_equal(first[split].features, again[split].features)


@pytest.mark.parametrize("damage", ["flipped", "short", "no record", "other record"])
def test_what_is_damaged_is_computed_again(
    extract: Extract, read: list[str], tmp_path: Path, damage: str
) -> None:
    before = np.array(extract(splits=["val"])["val"].features)
    (path,) = tmp_path.rglob("val-*.npy")
    content, record = path.read_bytes(), path.with_suffix(".json")
    if damage == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "short":
        path.write_bytes(content[:-4])
    elif damage == "no record":
        record.unlink()
    else:
        values = json.loads(record.read_text())
        values["about"]["center_crop"] = 0.5
        record.write_text(json.dumps(values))
    after = extract(splits=["val"])["val"].features
    assert read == ["val", "val"]
    np.testing.assert_array_equal(after, before)


def test_a_run_that_ends_early_leaves_whole_splits_and_goes_on_with_the_rest(
    extract: Extract, network: Network, read: list[str], tmp_path: Path, monkeypatch
) -> None:
    original = parallel.to_devices

    def to_devices(mesh, batch):
        if read == ["train", "val"] and 8 in batch["index"]:  # the second batch of val
            raise KeyboardInterrupt
        return original(mesh, batch)

    monkeypatch.setattr(parallel, "to_devices", to_devices)
    with pytest.raises(KeyboardInterrupt):
        extract()
    kept = [path.name.split("-")[0] for path in tmp_path.rglob("*.npy")]
    assert kept == ["train"]
    assert not [*tmp_path.rglob("*.tmp")]
    (folder,) = (tmp_path / "features").iterdir()
    (folder / ".val.npy.1.tmp").write_bytes(b"of a run that was killed outright")
    monkeypatch.setattr(parallel, "to_devices", original)
    read.clear()
    extract()
    assert read == ["val", "test"]
    assert not [*tmp_path.rglob("*.tmp")]


def test_other_numbers_are_kept_apart(
    extract: Extract, network: Network, dataset: PreparedDataset, read: list[str]
) -> None:
    def with_config(change: Callable[[ExperimentConfig], None]) -> Network:
        config = ExperimentConfig(**{
            field.name: getattr(network.config, field.name)
            for field in dataclasses.fields(ExperimentConfig)
        })  # fmt: skip
        for name in ("backbone", "augment", "train"):
            setattr(config, name, dataclasses.replace(getattr(config, name)))
        change(config)
        return dataclasses.replace(network, config=config)

    def one() -> None:
        extract(splits=["val"])

    one()
    others = [
        {"network": dataclasses.replace(network, identity={"weights": "ab"})},
        {"network": dataclasses.replace(network, identity={"weights": "cd"})},
        {"network": dataclasses.replace(network, identity={"run": "ab"})},
        {"network": dataclasses.replace(network, identity={"run": "ab", "head": 1})},
        {"network": dataclasses.replace(
            network, info=dataclasses.replace(network.info, mean=(0.1, 0.2, 0.3)))},
        {"network": with_config(lambda c: setattr(c.augment, "center_crop", 0.9))},
        {"network": dataclasses.replace(network, identity={"seed": 1})},
        {"network": dataclasses.replace(network, dtype=jnp.bfloat16)},
        {"dataset": dataclasses.replace(
            dataset, info=dataclasses.replace(dataset.info, manifest_sha256="ef"))},
    ]  # fmt: skip
    for i, changes in enumerate(others):
        extract(splits=["val"], **changes)
        assert len(read) == i + 2, changes
    # The same numbers: nothing that is trained, and no seed beside given weights.
    extract(splits=["val"], network=with_config(lambda c: setattr(c.backbone, "drop_path", 0.5)))
    # "auto" in a config is a type on this machine and may be another on the next.
    extract(splits=["val"], network=with_config(lambda c: setattr(c.backbone, "dtype", "auto")))
    extract(splits=["val"], network=with_config(lambda c: setattr(c.backbone, "dtype", "float32")))
    changed = with_config(lambda c: setattr(c.train, "seed", 1))
    extract(splits=["val"], network=dataclasses.replace(changed, identity={"weights": "ab"}))
    assert len(read) == len(others) + 1


def test_a_part_of_the_training_images_has_the_same_features(
    extract: Extract, dataset: PreparedDataset, read: list[str]
) -> None:
    whole = extract(splits=["train"])["train"]
    part = extract(splits=["train"], dataset=training_subset(dataset, shots=3))["train"]
    assert read == ["train", "train"]
    assert len(part.ids) == 6
    rows = [whole.ids.index(name) for name in part.ids]
    np.testing.assert_allclose(part.features, whole.features[rows], atol=SAME_FLOAT32, rtol=0)


def test_features_that_are_no_numbers_name_the_image(
    extract: Extract, network: Network, dataset: PreparedDataset, tmp_path: Path
) -> None:
    arrays = dict(network.arrays)
    arrays["backbone.cls_token"] = arrays["backbone.cls_token"] * np.nan
    with pytest.raises(UserError, match=f"image {dataset.ids('train')[0]!r} are not finite"):
        extract(network=dataclasses.replace(network, arrays=arrays))
    assert not [*tmp_path.rglob("*.npy")]


def test_a_folder_that_cannot_be_written_to_is_refused(extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="expected a folder that can be written to"):
        extract(folder=tmp_path / "file" / "features")


def test_two_runs_compute_once(extract: Extract, read: list[str], tmp_path: Path) -> None:
    extract(splits=["val"])
    (lock,) = tmp_path.rglob(".lock")
    said: list[str] = []
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threading.Thread(target=extract, kwargs={"splits": ["val"], "say": said.append})
        second.start()
        while not said and second.is_alive():
            time.sleep(0.01)
        assert "another run is computing the same features" in said[0]
        assert second.is_alive()
    second.join(timeout=60)
    assert not second.is_alive()
    assert read == ["val"]


def test_the_program_judges_and_goes_on_after_a_kill(root: Path, tmp_path: Path) -> None:
    """Killed on one device in the middle, and finished on eight."""
    arguments = (
        f"--config={runs.write_config(tmp_path, root / 'data')}",
        f"--workdir={tmp_path / 'run'}",
        "--config.protocol=knn",
        "--config.knn.k=(1,7)",
        "--config.knn.temperature=(0.1,)",
    )
    process = runs.start(*arguments)
    assert process.stdout is not None
    while "val images: computing" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "run" / "result.json").exists()

    out = runs.succeed(*arguments, devices=8)
    assert "train images: computing" not in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["k"] for row in result["findings"][0]["values"]["tried"]] == [1, 7]
    test = result["findings"][0]["evaluations"]["test"]
    assert test["count"] == 9
    assert test["values"]["accuracy"] > 0.5
