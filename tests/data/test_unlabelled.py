"""Images without labels: prepared, described, pre-trained on, refused by whatever reads labels."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import short_runs
from PIL import Image

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.card.page import write_card
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.errors import UsageError, UserError
from fmi_jax.fields import set_fields
from fmi_jax.report.page import write_report
from fmi_jax.run import experiment
from fmi_jax.settings import OptimConfig

IMAGES = 23


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("unlabelled") / "raw", np.random.default_rng(3)
    folder.mkdir()
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (17, 19, 3), np.uint8)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def table(raw: Path) -> Callable[[str, Callable[[int], str]], Path]:
    def write(header: str, line: Callable[[int], str]) -> Path:
        path = raw.parent / "table.csv"
        path.write_text("\n".join([header, *map(line, range(IMAGES))]) + "\n")
        return path

    return write


def test_a_folder_of_images_is_all_training_images(raw: Path, tmp_path: Path) -> None:
    found = check(folder_spec("plain"), raw)
    assert (found.problems, found.doubts) == ([], [])
    dataset = prepare(folder_spec("plain"), raw, tmp_path, size=16)
    info = open_dataset(tmp_path, "plain", 16).info
    assert (info.label, info.task, info.classes) == (Label.NONE, "unlabelled", ())
    assert (info.split, info.counts) == ("train", {"train": IMAGES, "val": 0, "test": 0})
    assert info.mean  # of the training images
    image, label = dataset.split("train")[IMAGES - 1]
    assert (image.shape, label.shape) == ((16, 16, 3), (0,))
    page = write_card(dataset).read_text()
    assert "unlabelled, split &#39;train&#39;: 23 train" in page
    assert "Without labels: networks can be pre-trained on it" in page
    assert "<h2>Classes</h2>" not in page


def test_a_table_of_paths_may_name_groups_and_splits(raw: Path, table, tmp_path: Path) -> None:
    spec = csv_spec("paths", image_root=raw)
    path = table("path,group", lambda i: f"{i:02}.png,p{i // 3}")
    dataset = prepare(spec, path, tmp_path / "grouped", size=16)
    assert dataset.info.counts["train"] == IMAGES
    assert dataset.info.group_counts["train"] == 8
    path = table("path,split", lambda i: f"{i:02}.png,{'val' if i < 5 else 'train'}")
    dataset = prepare(spec, path, tmp_path / "split", size=16)
    assert dataset.info.split == "official"
    assert dataset.info.counts == {"train": IMAGES - 5, "val": 5, "test": 0}
    path = table("path,split", lambda i: f"{i:02}.png,test")
    with pytest.raises(
        UsageError, match="without an image, and without labels the others can only"
    ):
        prepare(spec, path, tmp_path / "none", size=16)


def test_a_label_that_is_missing_is_not_taken_for_none(raw: Path, table, tmp_path: Path) -> None:
    path = table("path,age", lambda i: f"{i:02}.png,{i}")
    with pytest.raises(UserError, match=r"no column 'label'.*for images without labels"):
        prepare(csv_spec("paths", image_root=raw), path, tmp_path, size=16)
    with pytest.raises(UserError, match="no class folders, and the classes a, b were named"):
        prepare(folder_spec("plain", classes=("a", "b")), raw, tmp_path, size=16)
    with pytest.raises(UsageError, match="metric='accuracy': a data set without labels"):
        prepare(folder_spec("plain", metric="accuracy"), raw, tmp_path, size=16)


@pytest.fixture(scope="module")
def squares(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    prepare(folder_spec("plain"), raw, Path(config.data.data_dir), size=16)
    config.optim.warmup_steps, config.train.max_steps = 0, 2
    return config


def test_a_pretraining_hands_its_backbone_to_a_labelled_set(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(copy.deepcopy(squares), protocol="simsiam", metric="")
    config.data.name = "plain"
    set_fields(config, {"simsiam.projection_width": 17, "simsiam.prediction_width": 7})
    result = experiment.run(config, tmp_path / "before")
    notes = " ".join(result.finding.notes)
    assert "plain has no labels, and all 23 images of plain were seen." in notes
    write_report(tmp_path / "before")
    assert "plain has no labels" in (tmp_path / "before" / "report.html").read_text()

    config = dataclasses.replace(copy.deepcopy(squares), protocol="knn", optim=OptimConfig())
    config.knn.k = (5,)
    config.backbone.run = str(tmp_path / "before")
    result = experiment.run(config, tmp_path / "after")
    assert 0 <= result.test.values["accuracy"] <= 1
    assert "images of plain that the backbone was trained on" in " ".join(result.notes)


@pytest.mark.parametrize("protocol", ["knn", "linear_probe", "logistic", "decoder"])
def test_whatever_reads_labels_says_what_to_use(
    protocol: str, squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(copy.deepcopy(squares), protocol=protocol, metric="")
    config.data.name = "plain"
    if protocol == "decoder":
        config.protocol, config.adapt, config.head = "fit", "full", "decoder"
    with pytest.raises(UsageError, match=r"'plain' has none: expected .* \(dino, byol, simsiam"):
        experiment.run(config, tmp_path)
