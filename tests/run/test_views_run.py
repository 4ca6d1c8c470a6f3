"""Runs whose test images are seen in ten crops."""

import copy
from pathlib import Path

import numpy as np
import pytest
import short_runs
from PIL import Image
from tolerances import LOSS_ON_DEVICES, SAME_FLOAT32

from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import open_dataset
from fmi_jax.errors import UsageError
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.run.predict import predict
from fmi_jax.tasks.predictions import read_predictions


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.augment.center_crop = 0.75  # 12 of 16 pixels, which are resized to 16
    return config


def of_ten_crops(squares: ExperimentConfig) -> ExperimentConfig:
    config = copy.deepcopy(squares)
    config.views.name = "ten_crop"
    return config


def test_a_run_tests_on_ten_crops_and_validates_on_one(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    short_runs.run(squares, tmp_path / "one")
    short_runs.run(of_ten_crops(squares), tmp_path / "ten")
    short_runs.run(of_ten_crops(squares), tmp_path / "devices", devices=8)
    one, ten, devices = (Result.read(tmp_path / name) for name in ("one", "ten", "devices"))
    assert one.best is not None
    assert ten.best is not None
    assert ten.best.value == pytest.approx(one.best.value, rel=SAME_FLOAT32)
    assert ten.val.values["loss"] != pytest.approx(one.val.values["loss"], rel=1e-4)
    for split in ("val", "test"):
        found, expected = (each.finding.evaluations[split].values for each in (devices, ten))
        assert found == pytest.approx(expected, rel=10 * LOSS_ON_DEVICES)

    # The mean of ten images whose centre crops are the crops.
    dataset = open_dataset(Path(squares.data.data_dir), "squares", 16)
    files = []
    for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
        crop = dataset.image("test", 0)[top : top + 12, left : left + 12]
        for i, mirrored in enumerate((crop, crop[:, ::-1])):
            files.append(tmp_path / f"{top}_{left}_{i}.png")
            around = np.pad(mirrored, ((2, 2), (2, 2), (0, 0)))
            Image.fromarray(around).save(files[-1])
    by_hand = predict(tmp_path / "one", files).probabilities.mean(axis=0)
    table = read_predictions(tmp_path / "ten" / "predictions.csv", Label.INDEX, ten.test.classes)
    assert table.probabilities[0] == pytest.approx(by_hand, abs=1e-5)
    whole = tmp_path / "whole.png"
    Image.fromarray(dataset.image("test", 0)).save(whole)
    assert predict(tmp_path / "ten", [whole]).probabilities[0] == pytest.approx(by_hand, abs=1e-5)


def test_an_estimate_counts_every_view(squares: ExperimentConfig) -> None:
    counts = {"train": 40, "val": 11, "test": 7}
    one, ten = (
        protocol_of(config).images(config, counts) for config in (squares, of_ten_crops(squares))
    )
    assert one.judged > 2 * 11 + 7
    assert ten.judged - one.judged == 9 * (11 + 7)
    windows = copy.deepcopy(squares)
    windows.views.name, windows.data.prepared_size = "windows", 40  # windows of 16: 4 along an axis
    assert protocol_of(windows).images(windows, counts).judged == 16 * one.judged


def test_features_that_are_kept_have_one_view(squares: ExperimentConfig, tmp_path: Path) -> None:
    fields = {"protocol": "probe_grid", "probe_grid.cached": True, "views.name": "ten_crop"}
    with pytest.raises(UsageError, match=r"head 'grid' reads kept features of the centre crop"):
        short_runs.run(short_runs.changed(squares, fields), tmp_path)
