"""Runs without labels and runs of masks: completed, chosen by their loss, handed on, exported."""

import copy
import csv
import dataclasses
import json
import re
from pathlib import Path
from unittest import mock

import pytest
import short_runs
from PIL import Image
from tolerances import SAME_FLOAT32

from fmi_jax.artifacts.result import PENDING
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.registry import BACKBONES
from fmi_jax.run import conclusion, experiment
from fmi_jax.run.predict import predict
from weights_convert.export import read_source


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    made = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    short_runs.prepare_masked(Path(made.data.data_dir))
    made.backbone.last_block = 0
    made.train.max_steps, made.train.bootstrap_samples = 3, 7
    return made


class Killed(BaseException):
    """Stands for a signal that nobody catches."""


def test_a_run_killed_after_its_result_is_completed(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {"protocol": "dino", "data.fraction": 0.5, "dino.monitor_images": 0}
    config = short_runs.changed(squares, fields)
    page = mock.patch.object(conclusion, "write_report", side_effect=Killed)
    with page, pytest.raises(Killed):
        experiment.run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()  # it appears when all else is there
    written = (tmp_path / PENDING).read_bytes()
    step = tmp_path / "checkpoints" / "3"
    assert (step / "training").is_dir()
    result = experiment.run(config, tmp_path)
    assert (tmp_path / "result.json").read_bytes() == written
    assert b"</html>" in (tmp_path / "report.html").read_bytes()
    steps = [path for path in step.parent.iterdir() if path.name.isdecimal()]
    assert steps == [step]
    assert (step / "model").is_dir()
    assert not (step / "training").exists()
    # It was trained on a part of the images, though it has no metric of them.
    assert any(note.startswith("Trained on ") for note in result.notes)
    assert "validation images" not in " ".join(result.notes)  # the last step is kept
    after = short_runs.changed(
        squares,
        {"protocol": "knn", "knn.k": (5,), "backbone.run": str(tmp_path), "data.shots": 4},
    )
    chosen = experiment.run(after, tmp_path / "knn")  # what is left can be handed on
    assert (
        "What is reported was chosen on all 9 validation images: their labels are used beside those"
        " of the 8 training images."
    ) in chosen.notes

    # Of a damaged checkpoint nothing is deleted.
    (step / "training").mkdir()
    (step / "model" / "more").write_text("damage")
    experiment.run(config, tmp_path)
    assert (step / "training").is_dir()


def test_a_head_on_each_patch_is_not_exported_as_a_classifier(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {"protocol": "fit", "adapt": "frozen", "head": "per_patch", "data.name": "masked"}
    experiment.run(short_runs.changed(squares, fields), tmp_path / "masks")
    probe = dataclasses.replace(copy.deepcopy(squares), protocol="linear_probe")
    experiment.run(probe, tmp_path / "probe")
    spec = BACKBONES["deit_nano"]
    assert read_source(spec, tmp_path / "masks").head is None
    assert read_source(spec, tmp_path / "probe").head is not None


def test_new_images_are_decided_on_at_the_threshold_of_validation(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = short_runs.changed(squares, {"protocol": "linear_probe"})
    config.operating.name, config.operating.target = "sensitivity", 1.0
    result = experiment.run(config, tmp_path / "probe")
    [(name, threshold)] = result.test.choices["thresholds"].items()
    assert result.test.decisions[name].threshold == threshold
    assert "sensitivity of at least 1" in (tmp_path / "probe" / "report.html").read_text()
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
    predict(tmp_path / "probe", [*tmp_path.glob("*.png")]).write(tmp_path / "new.csv")
    with (tmp_path / "new.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row[f"decision_{name}"] == str(int(float(row[f"p_{name}"]) >= threshold))


def test_a_run_that_no_longer_improves_ends_early_and_says_so(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {"protocol": "linear_probe", "metric": "accuracy", "optim.learning_rate": 1e-12}
    config = short_runs.changed(squares, fields | {"train.epochs": 9.0, "train.max_steps": 0})
    config.train.patience = 1
    config.train.eval_every_epochs = 1.0
    result = experiment.run(config, tmp_path)
    assert result.best is not None
    first = result.best.step  # what is no better later changes nothing
    (note,) = [note for note in result.notes if note.startswith("Training ended")]
    assert re.fullmatch(
        f"Training ended after {result.steps} of [0-9]+ steps: validation had not improved 2 times"
        r" in a row \(train.patience\)\.",
        note,
    )
    assert 2 * first < result.steps <= 3 * first + 2
    assert experiment.run(config, tmp_path).steps == result.steps


def validations(workdir: Path) -> list[dict[str, float]]:
    """Scalars of every validation of a run."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "val/loss" in row]


def test_the_trained_loss_selects_the_step_and_augmented_validations_resume(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {
        **{"protocol": "fit", "adapt": "frozen", "head": "per_patch", "data.name": "masked"},
        **{"metric": "dice", "loss.terms": "dice", "loss.dice_over": "batch"},
        **{"train.select_by": "loss", "train.max_steps": 6, "optim.learning_rate": 0.1},
    }
    config = short_runs.changed(squares, fields)
    config.augment.center_crop, config.train.eval_every_epochs = 1.0, 0.3
    result = short_runs.run(config, tmp_path / "plain")
    assert result.best is not None
    rows = validations(tmp_path / "plain")
    lowest = min(rows, key=lambda row: row["val/trained_loss"])
    assert len(rows) == 4
    assert (result.best.step, result.best.metric) == (lowest["step"], "dice")
    assert result.best.value == pytest.approx(lowest["val/dice"], abs=SAME_FLOAT32)
    assert result.best.value == result.val.values["dice"]
    # Dice alone, over the batch, is not the loss among the metrics.
    assert all(abs(row["val/trained_loss"] - row["val/loss"]) > 0.01 for row in rows)

    # A network that stands still: what changes is drawn for each validation, and drawn again.
    config.train.augment_validation = True
    config.optim.learning_rate = 1e-20
    config.augment.crop_scale = (0.3, 0.6)
    config.augment.tone_probability = config.augment.zoom_probability = 0.5
    short_runs.run(config, tmp_path / "whole")
    resumed = short_runs.run_stopped(config, tmp_path / "resumed", after=3)
    rows = validations(tmp_path / "whole")
    assert len({row["val/trained_loss"] for row in rows}) == len(rows) == 4
    assert validations(tmp_path / "resumed") == rows
    # The finished network is measured on images as they are.
    assert resumed.val.values["dice"] not in {row["val/dice"] for row in rows}


def test_the_trained_loss_of_classes_has_the_options_of_the_loss(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {"protocol": "linear_probe", "train.select_by": "loss", "metric": "accuracy"}
    config = short_runs.changed(squares, fields)
    short_runs.run(config, tmp_path / "plain")
    (row, *_) = validations(tmp_path / "plain")
    assert row["val/trained_loss"] == pytest.approx(row["val/loss"], rel=SAME_FLOAT32)
    config.loss.label_smoothing = 0.9
    short_runs.run(config, tmp_path / "smoothed")
    (row, *_) = validations(tmp_path / "smoothed")
    assert abs(row["val/trained_loss"] - row["val/loss"]) > 1e-4
    fields = {"protocol": "probe_grid", "probe_grid.cached": True}
    kept = short_runs.changed(squares, fields | {"train.augment_validation": True})
    with pytest.raises(UsageError, match=r"train\.augment_validation: heads on kept features"):
        short_runs.run(kept, tmp_path / "kept")
