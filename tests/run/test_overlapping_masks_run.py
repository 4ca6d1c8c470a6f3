"""A run on masks that overlap: trained, measured on another set, and applied to new images."""

import csv
from pathlib import Path

import numpy as np
import pytest
import short_runs
from PIL import Image

from fmi_jax.artifacts.result import Result
from fmi_jax.cli import main
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.raw.drawn.dicom import write_dicom
from fmi_jax.run import experiment
from fmi_jax.run.evaluate import evaluate
from fmi_jax.run.masks import MaskOptions, write_masks
from fmi_jax.tasks.segmentation import MultilabelSegmentation

CLASSES = ("dot", "square")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    short_runs.prepare_layered(Path(config.data.data_dir), count=211)
    return config


@pytest.fixture(scope="module")
def trained(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"protocol": "fit", "adapt": "full", "head": "decoder", "data.name": "layered"}
    config = short_runs.changed(squares, fields | {"loss.class_weights": "balanced"})
    config.train.max_steps, config.train.bootstrap_samples = 80, 23
    config.optim.learning_rate = 3e-3
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    experiment.run(config, workdir)
    return workdir


def test_both_classes_of_a_pixel_are_learned_and_measured(trained: Path) -> None:
    result = Result.read(trained)
    assert (result.dataset["task"], result.test.classes) == ("multilabel_segmentation", CLASSES)
    assert min(result.test.per_class[name]["dice"] for name in CLASSES) > 0.5
    # Of every pixel it is counted whether it has the class.
    assert (result.test.confusion.sum(axis=(1, 2)) == result.test.count * 16 * 16).all()
    assert {f"lesion_sensitivity[{name}]" for name in CLASSES} <= {*result.test.named()}
    assert {*result.test.intervals} >= {"dice", "dice[dot]", "hausdorff_95[square]"}
    (site,) = result.test.subgroups
    assert {*site.levels} == {"a", "b"}
    assert list(result.finding.figures) == ["worst.png", "outlines.png"]
    page = (trained / "report.html").read_text()
    assert "data:image/png" in page.partition("of the lowest Dice")[0]
    measured, _ = MultilabelSegmentation(CLASSES).read(trained / "segmentation.csv")
    assert MultilabelSegmentation(CLASSES).evaluate(measured).values["dice"] == pytest.approx(
        result.test.values["dice"]
    )


def test_an_external_set_is_measured_by_the_classes_that_both_know(
    squares: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    data_dir, own = Path(squares.data.data_dir), Result.read(trained)
    short_runs.prepare_layered(data_dir, "turned", ("square", "scar", "dot"), count=211)
    short_runs.prepare_layered(data_dir, "fewer", ("square", "scar"), count=211)
    turned = evaluate(trained, "turned", tmp_path / "turned")
    assert turned.test.classes == CLASSES
    assert turned.test.named() == pytest.approx(own.test.named(), rel=1e-5)
    assert "Classes of turned that were left out: scar." in turned.notes
    assert any("also among the training and validation images" in note for note in turned.notes)
    assert (tmp_path / "turned" / "report.html").exists()
    fewer = evaluate(trained, "fewer", tmp_path / "fewer")
    assert fewer.test.classes == ("square",)
    assert fewer.test.per_class["square"] == pytest.approx(own.test.per_class["square"], rel=1e-5)
    assert fewer.test.values["dice"] == pytest.approx(own.test.per_class["square"]["dice"])


def test_new_images_get_a_picture_for_each_class_also_of_dicom(
    squares: ExperimentConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = open_dataset(Path(squares.data.data_dir), "layered", 16)
    colour, grey = dataset.image("test", 0), dataset.image("test", 1)[..., 0]
    files = [tmp_path / name for name in ("colour.png", "grey.png", "grey.dcm", "tall.dcm")]
    Image.fromarray(colour).save(files[0])
    Image.fromarray(grey).save(files[1])
    write_dicom(files[2], grey, SOPInstanceUID="1.2.3")
    write_dicom(files[3], grey.repeat(3, axis=0), SOPInstanceUID="1.2.4")
    table, folder = tmp_path / "masks.csv", tmp_path / "masks"
    command = f"predict --workdir {trained} --masks {folder} --out {table}"
    assert main([*command.split(), *map(str, files)]) == 0
    found = {
        (file.name, name): np.asarray(Image.open(folder / f"{file.stem}_{i}_{name}.png"))
        for i, file in enumerate(files, 1)
        for name in CLASSES
    }
    assert len([*folder.iterdir()]) == len(found)
    with table.open(newline="") as file:
        rows = [(row["class"], int(row["pixels"])) for row in csv.DictReader(file)]
    assert rows == [(name, mask.sum()) for (_, name), mask in found.items()]
    kept, _ = MultilabelSegmentation(CLASSES).read(trained / "segmentation.csv")
    for c, name in enumerate(CLASSES):
        assert found["colour.png", name].sum() == kept["predicted"][0, c] > 0
        np.testing.assert_array_equal(found["grey.dcm", name], found["grey.png", name])
        tall = found["grey.png", name].repeat(3, axis=0)
        assert (found["tall.dcm", name] != tall).mean() < 0.02  # of an image that was resized
    write_masks(trained, files[:1], table, folder, MaskOptions(flips=True, largest=True))
    capsys.readouterr()
    assert main([*f"predict --workdir {trained} --out {table}".split(), str(files[0])]) == 1
    assert "on masks that overlap: expected one that has trained a" in capsys.readouterr().err
