"""A finished run on a data set that it never saw."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import short_runs
from PIL import Image

from fmi_jax import cli
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.errors import UsageError, UserError
from fmi_jax.run.evaluate import evaluate
from fmi_jax.tasks.predictions import read_predictions


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    return short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def trained(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    short_runs.run(squares, workdir)
    return workdir


def external(
    squares: ExperimentConfig,
    name: str,
    rows: list[tuple[Path, str]],
    *,
    classes: tuple[str, ...] = (),
    size: int = 16,
) -> None:
    """Prepare images of the raw squares, all of them for testing, as a data set of its own."""
    folder = Path(squares.data.data_dir).parent / name
    folder.mkdir()
    lines = ["path,label,split"]
    for i, (path, label) in enumerate(rows):
        shutil.copy(path, folder / f"{i}.png")
        split = ("train", "val")[i] if i < 2 else "test"
        lines.append(f"{i}.png,{label},{split}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    prepare(
        csv_spec(name, classes=classes),
        folder / "table.csv",
        Path(squares.data.data_dir),
        size=size,
        split="official",
    )


def raw_images(squares: ExperimentConfig, split: str) -> list[tuple[Path, str]]:
    """Files and class names of a split of the squares, in row order."""
    dataset = open_dataset(Path(squares.data.data_dir), "squares", 16)
    with open(dataset.folder / "index.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == split]
    root = Path(squares.data.data_dir).parent / "raw"
    return [(root / line["path"], dataset.info.classes[int(line["label"])]) for line in lines]


def test_its_own_test_images_under_another_order_of_classes_give_its_own_metrics(
    squares: ExperimentConfig, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    own = Result.read(trained)
    tested = raw_images(squares, "test")
    filler = raw_images(squares, "train")[:2]
    external(squares, "turned", filler + tested, classes=own.test.classes[::-1])
    arguments = ["evaluate", "--workdir", str(trained), "--data", "turned"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "External test on turned" in said
    out = trained / "external" / "turned-test"
    found = Result.read(out)
    assert found.test.classes == own.test.classes
    assert found.test.values == pytest.approx(own.test.values)
    np.testing.assert_array_equal(found.test.confusion, own.test.confusion)
    described = json.loads((out / "result.json").read_text())["dataset"]
    assert described["name"] == "turned"
    assert described["trained_on"]["name"] == "squares"
    assert any("External test on turned (test)" in note for note in found.notes)
    assert any(note.startswith("0 of ") for note in found.notes)
    page = (out / "report.html").read_text()
    assert "Test on squares" in page
    assert "The data name no patients" in " ".join(page.split())
    assert "External test on turned" in page
    kept = read_predictions(out / "predictions.csv", Label.INDEX, own.test.classes)
    assert len(kept.ids) == own.test.count


def test_all_splits_another_size_and_fewer_classes(
    squares: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    own = Result.read(trained)
    first = own.test.classes[0]
    rows = [row for row in raw_images(squares, "test") if row[1] == first]
    seen = [row for row in raw_images(squares, "train") if row[1] == first]
    external(squares, "one_class", seen[:3] + rows, classes=("green", first), size=23)
    found = evaluate(trained, "one_class", tmp_path / "out", split="all")
    assert found.test.count == 3 + len(rows)
    assert found.test.classes == own.test.classes
    assert f"recall[{own.test.classes[1]}]" in found.test.undefined
    assert np.isfinite(found.test.per_class[first]["recall"])
    assert any("prepared at 23 pixels" in note for note in found.notes)
    assert "Classes of squares that one_class does not have: red." in found.notes
    assert "Classes of one_class that were left out: green." in found.notes
    # As scikit-learn counts a class that is predicted and has no image.
    assert any("as 0 in macro precision" in note for note in found.notes)
    assert any(note.startswith("3 of ") and "too good" in note for note in found.notes)


def test_a_class_that_the_network_does_not_know_is_refused(
    squares: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    rows = raw_images(squares, "test")
    named = [(path, label + "s") for path, label in rows]
    external(squares, "strange", named)
    first = Result.read(trained).test.classes[0]
    with pytest.raises(UserError, match=rf"does not know: expected some of '{first}'.*nearest"):
        evaluate(trained, "strange", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"split of squares with images 'tests'.*'test'"):
        evaluate(trained, "squares", tmp_path / "out", split="tests")


def test_findings_that_nobody_looked_for_do_not_count(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    """Several findings per image: only those that both sides know are measured."""
    data_dir = Path(squares.data.data_dir)

    def prepared(name: str, columns: tuple[str, ...]) -> None:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(3)
        lines = [f"path,{','.join(columns)}"]
        values = {c: rng.integers(0, 2, 40) for c in ("a", "b", "c", "d")}
        for i in range(40):
            Image.fromarray(rng.integers(0, 255, (17, 17, 3), np.uint8)).save(folder / f"{i}.png")
            lines.append(f"{i}.png," + ",".join(str(values[c][i]) for c in columns))
        (folder / "table.csv").write_text("\n".join(lines) + "\n")
        prepare(csv_spec(name, label_columns=columns), folder / "table.csv", data_dir, size=16)

    prepared("many", ("a", "b", "c"))
    prepared("few", ("d", "c", "a"))
    config = short_runs.changed(squares, {"data.name": "many", "train.max_steps": 2})
    short_runs.run(config, tmp_path / "run")
    own = evaluate(tmp_path / "run", "many", tmp_path / "own", split="all")
    found = evaluate(tmp_path / "run", "few", tmp_path / "out", split="all")
    assert found.test.classes == ("a", "c")
    assert any(note.startswith("Test on its own data set many") for note in own.notes)
    assert not any("macro precision" in note for note in found.notes)
    # Same pictures and labels in both sets, so each finding has the metrics of the whole network.
    for name in found.test.classes:
        assert found.test.per_class[name] == pytest.approx(own.test.per_class[name], nan_ok=True)
    assert any(note == "Classes of few that were left out: d." for note in found.notes)
    assert any(note == "Classes of many that few does not have: b." for note in found.notes)
