"""Runs on masks of several classes: measured on another set, by subgroup, and on new images."""

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
from fmi_jax.tasks.segmentation import MultilabelSegmentation, Segmentation

FOREGROUND = ("dot", "square")
CLASSES = {Segmentation: ("background", *FOREGROUND), MultilabelSegmentation: FOREGROUND}
COUNT = 211


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    for kind, classes in CLASSES.items():
        short_runs.prepare_layered(Path(config.data.data_dir), kind.name, classes, COUNT)
    return config


@pytest.fixture(scope="module", params=CLASSES, ids=lambda kind: kind.name)
def task(request: pytest.FixtureRequest) -> Segmentation:
    return request.param(CLASSES[request.param])


@pytest.fixture(scope="module")
def trained(
    task: Segmentation, squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    fields = {"protocol": "fit", "adapt": "full", "head": "decoder", "data.name": task.name}
    config = short_runs.changed(squares, fields | {"loss.class_weights": "balanced"})
    config.train.max_steps, config.train.bootstrap_samples = 80, 23
    config.optim.learning_rate = 3e-3
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    experiment.run(config, workdir)
    return workdir


def test_every_class_of_a_pixel_is_learned_and_measured(task: Segmentation, trained: Path) -> None:
    result = Result.read(trained)
    assert (result.dataset["task"], result.test.classes) == (task.name, task.classes)
    assert min(result.test.per_class[name]["dice"] for name in FOREGROUND) > 0.5
    # Of every pixel it is counted whether it has the class.
    assert (result.test.confusion.sum(axis=(1, 2)) == result.test.count * 16 * 16).all()
    assert {f"lesion_sensitivity[{name}]" for name in FOREGROUND} <= {*result.test.named()}
    assert {*result.test.intervals} >= {"dice", "dice[dot]", "hausdorff_95[square]"}
    (site,) = result.test.subgroups
    assert {*site.levels} == {"a", "b"}
    assert list(result.finding.figures) == ["worst.png", "outlines.png"]
    page = (trained / "report.html").read_text()
    assert "data:image/png" in page.partition("of the lowest Dice")[0]
    measured, _ = task.read(trained / task.file)
    again = task.evaluate(measured)
    assert again.values["dice"] == pytest.approx(result.test.values["dice"])
    np.testing.assert_array_equal(again.confusion, result.test.confusion)


def test_an_external_set_is_measured_by_the_classes_that_both_know(
    task: Segmentation, squares: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    data_dir, own = Path(squares.data.data_dir), Result.read(trained)
    background = task.classes[: task.label.background]
    name = f"turned_{task.name}"
    turned = (*background, "square", "scar", "dot")
    short_runs.prepare_layered(data_dir, name, turned, COUNT)
    found = evaluate(trained, name, tmp_path / "turned")
    assert found.test.classes == task.classes
    assert found.test.named() == pytest.approx(own.test.named(), rel=1e-5)
    assert f"Classes of {name} that were left out: scar." in found.notes
    assert any("also among the training and validation images" in note for note in found.notes)
    if not background:
        short_runs.prepare_layered(data_dir, "fewer", ("square", "scar"), COUNT)
        fewer, alone = evaluate(trained, "fewer", tmp_path / "fewer").test, own.test.per_class
        assert fewer.classes == ("square",)
        assert fewer.per_class["square"] == pytest.approx(alone["square"], rel=1e-5)
        assert fewer.values["dice"] == pytest.approx(alone["square"]["dice"])


def test_masks_of_new_images_are_pictures_of_classes_also_of_dicom(
    task: Segmentation, squares: ExperimentConfig, trained: Path, tmp_path: Path, capsys
) -> None:
    dataset = open_dataset(Path(squares.data.data_dir), task.name, 16)
    colour, grey = dataset.image("test", 0), dataset.image("test", 1)[..., 0]
    files = [tmp_path / name for name in ("colour.png", "grey.png", "grey.dcm", "tall.dcm")]
    Image.fromarray(colour).save(files[0])
    Image.fromarray(grey).save(files[1])
    write_dicom(files[2], grey, SOPInstanceUID="1.2.3", PatientName="QZXWV", PatientID="QZXWV")
    write_dicom(files[3], grey.repeat(3, axis=0), SOPInstanceUID="1.2.4")
    table, folder = tmp_path / "masks.csv", tmp_path / "masks"
    command = f"predict --workdir {trained} --masks {folder} --out {table}"
    assert main([*command.split(), *map(str, files)]) == 0
    found, written = {}, {path.name for path in folder.iterdir()}
    for i, file in enumerate(files, 1):
        for c, name in enumerate(task.classes):
            if name in FOREGROUND:
                each = isinstance(task, MultilabelSegmentation)
                picture = f"{file.stem}_{i}_{name}.png" if each else f"{file.stem}_{i}.png"
                written.discard(picture)
                values = np.asarray(Image.open(folder / picture))
                found[file.name, name] = values if each else values == c
    assert not written
    assert not [path for path in (table, *folder.iterdir()) if b"QZXWV" in path.read_bytes()]
    with table.open(newline="") as file:
        rows = [(row["class"], int(row["pixels"])) for row in csv.DictReader(file)]
    assert rows == [(name, mask.sum()) for (_, name), mask in found.items()]
    kept, _ = task.read(trained / task.file)
    for name in FOREGROUND:
        predicted = kept["predicted"][0, task.classes.index(name)]
        assert found["colour.png", name].sum() == predicted > 0
        np.testing.assert_array_equal(found["grey.dcm", name], found["grey.png", name])
        tall = found["grey.png", name].repeat(3, axis=0)
        assert (found["tall.dcm", name] != tall).mean() < 0.02  # of an image that was resized
    write_masks(trained, files[:1], table, folder, MaskOptions(flips=True, largest=True))
    capsys.readouterr()
    assert main([*f"predict --workdir {trained} --out {table}".split(), str(files[0])]) == 1
    assert f"on {task.label.words}: expected one that has trained a" in capsys.readouterr().err
