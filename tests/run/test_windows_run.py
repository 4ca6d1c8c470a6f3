"""Masks of images larger than the network: they come from windows at the images' own scale."""

import copy
from pathlib import Path

import numpy as np
import pytest
import short_runs
from PIL import Image
from tolerances import LOSS_ON_DEVICES

from fmi_jax import cli
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import open_dataset
from fmi_jax.run import experiment
from fmi_jax.run.masks import MaskOptions, write_masks
from fmi_jax.tasks.segmentation import Segmentation

SIZE, PREPARED = 8, 16


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    squares = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    short_runs.prepare_masked(Path(squares.data.data_dir))
    squares.metric = "dice"
    fields = {
        **{"protocol": "fit", "adapt": "full", "head": "decoder", "data.name": "masked"},
        **{"optim.learning_rate": 0.02, "train.max_steps": 12},
        **{"image_size": SIZE, "augment.crop_scale": (0.25, 0.25), "views.name": "windows"},
    }
    return short_runs.changed(squares, fields)


@pytest.fixture(scope="module")
def trained(masked: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "windows"
    experiment.run(masked, workdir)
    return workdir


def test_every_metric_is_at_the_prepared_size(
    masked: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    result = Result.read(trained)
    measured, _ = Segmentation(result.test.classes).read(trained / "segmentation.csv")
    pixels = measured["true"].sum(axis=1)
    np.testing.assert_array_equal(pixels, PREPARED**2)
    assert result.best is not None
    assert result.best.value == pytest.approx(result.val.values["dice"])
    divided = copy.deepcopy(masked)
    divided.train.sharding = "fsdp"
    short_runs.run(divided, tmp_path, devices=8)
    devices = Result.read(tmp_path)
    assert devices.test.values["loss"] == pytest.approx(
        result.test.values["loss"], rel=10 * LOSS_ON_DEVICES
    )


def test_new_images_and_other_sets_are_seen_in_the_windows_of_the_run(
    masked: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    kept, _ = Segmentation(("background", "square")).read(trained / "segmentation.csv")
    dataset = open_dataset(Path(masked.data.data_dir), "masked", PREPARED)
    files = [tmp_path / f"{row}.png" for row in range(3)]
    for row, file in enumerate(files):
        Image.fromarray(dataset.image("test", row)).save(file)
    write_masks(trained, files, tmp_path / "masks.csv", tmp_path / "masks", MaskOptions())
    found = [np.asarray(Image.open(tmp_path / "masks" / f"{i}_{i + 1}.png")) for i in range(3)]
    assert min(kept["predicted"][:3, 1]) > 0
    assert [(one == 1).sum() for one in found] == kept["predicted"][:3, 1].tolist()
    assert cli.main(["evaluate", "--workdir", str(trained), "--data", "masked"]) == 0
    external = Result.read(trained / "external" / "masked-test")
    assert external.test.values["dice"] == pytest.approx(Result.read(trained).test.values["dice"])


def test_masks_of_a_network_whose_backbone_another_run_trained(
    masked: ExperimentConfig, tmp_path: Path
) -> None:
    """The classes are those of the masks, not those of the images that it saw first."""
    fields = {"protocol": "finetune", "data.name": "squares", "image_size": PREPARED}
    first = ExperimentConfig(data=copy.deepcopy(masked.data), train=copy.deepcopy(masked.train))
    first.augment, first.optim = copy.deepcopy(masked.augment), copy.deepcopy(masked.optim)
    first.backbone = copy.deepcopy(masked.backbone)
    first = short_runs.changed(first, fields)
    experiment.run(first, tmp_path / "first")
    second = copy.deepcopy(masked)
    second.backbone.run = str(tmp_path / "first")
    experiment.run(second, tmp_path / "second")
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((19, 23, 3), np.uint8)).save(image)
    write_masks(
        tmp_path / "second", [image], tmp_path / "m.csv", tmp_path / "m", MaskOptions(flips=True)
    )
    assert np.asarray(Image.open(tmp_path / "m" / "image_1.png")).shape == (19, 23)
    assert ",square," in (tmp_path / "m.csv").read_text()
