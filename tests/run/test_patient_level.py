"""Runs and external tests that are evaluated by image and by patient."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import short_runs
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from fmi_jax.artifacts.result import POOLED, Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.errors import UsageError
from fmi_jax.run import experiment
from fmi_jax.run.assessment import Assessor, check_pooling
from fmi_jax.run.evaluate import evaluate
from fmi_jax.tasks.classification import Multiclass
from fmi_jax.types import Rows


class NeverPooled(Multiclass):
    """A task that has no rule."""

    pools = ()


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """Squares without patients, and as "patients" with two or three images each."""
    folder = tmp_path_factory.mktemp("squares")
    config = short_runs.prepare_squares(folder)
    lines = ["path,label,split,group"]
    for label in ("blue", "red"):
        paths = sorted((folder / "raw" / label).iterdir())
        sizes = itertools.cycle((2, 3))
        patients = [name for name in range(13) for _ in range(next(sizes))]
        for path, patient in zip(paths, patients, strict=False):
            split = "test" if patient < 4 else "val" if patient < 8 else "train"
            # Patient 0 has images of both classes.
            name = "both" if patient == 0 else f"{label}{patient}"
            lines.append(f"raw/{label}/{path.name},{label},{split},{name}")
    (folder / "patients.csv").write_text("\n".join(lines) + "\n")
    table, data = folder / "patients.csv", folder / "data"
    prepare(csv_spec("patients"), table, data, size=16, split="official")
    return short_runs.changed(
        config,
        {
            **{"data.name": "patients", "group_pooling": "noisy_or", "train.max_steps": 2},
            **{"judges": ("knn",), "knn.k": (3,)},
        },
    )


@pytest.fixture(scope="module")
def trained(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    experiment.run(squares, workdir)
    return workdir


def test_a_run_states_metrics_of_images_and_of_patients(trained: Path) -> None:
    result = Result.read(trained)  # from JSON
    found = result.finding.pooled
    assert found is not None
    with (trained / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    absent: dict[str, float] = {}
    truth: dict[str, bool] = {}
    for row in rows:
        name = row["group"]
        absent[name] = absent.get(name, 1.0) * (1 - float(row["p_red"]))
        truth[name] = truth.get(name, False) or row["label"] == "red"
    assert truth["both"]
    assert (result.test.count, found.count) == (len(rows), len(truth)) == (20, 7)
    p = np.array([1 - absent[name] for name in truth])
    has = np.array([*truth.values()])
    assert found.values["roc_auc"] == pytest.approx(roc_auc_score(has, p))
    assert found.values["accuracy"] == pytest.approx(accuracy_score(has, p > 0.5))
    assert found.values["loss"] == pytest.approx(log_loss(has, p), rel=1e-4)
    low, high = found.intervals["loss"]
    assert low < found.values["loss"] < high
    # Chosen on pooled validation images, not on single ones.
    assert found.decisions["red"].threshold == found.choices["thresholds"]["red"]
    assert found.choices["thresholds"] != result.test.choices["thresholds"]
    assert all(one.pooled is not None for one in result.findings)
    page = (trained / "report.html").read_text()
    assert "<h2>Per group</h2>" in page
    assert "noisy-or" in page


def test_an_external_test_is_pooled_as_the_run_was(trained: Path, tmp_path: Path) -> None:
    own = Result.read(trained).finding.pooled
    found = evaluate(trained, "patients", tmp_path / "same").finding.pooled
    assert own is not None
    assert found is not None
    assert found.choices == own.choices
    assert found.values == pytest.approx(own.values)
    assert found.intervals.keys() == own.intervals.keys()
    without = evaluate(trained, "squares", tmp_path / "without")
    assert POOLED not in without.finding.evaluations
    assert any("no groups" in note for note in without.all_notes)
    assert "Per group" not in (tmp_path / "without" / "report.html").read_text()


def test_groups_of_several_classes_are_counted_in_a_note() -> None:
    task, config = Multiclass(("a", "b", "c")), ExperimentConfig(group_pooling="mean")
    config.train.bootstrap_samples = 7
    measured = {"logits": np.eye(5, 3), "labels": np.array([0, 1, 2, 0, 0])}

    def found(groups: list[str]):
        assessor = Assessor(task, config, "accuracy")
        return assessor.assess_groups(measured, Rows([*"12345"], groups), {})

    some = found([*"pqqrr"])
    assert some.evaluations[POOLED].count == 2
    assert some.notes == (
        "1 of 3 groups have images of different classes: the metrics per group leave them out.",
    )
    none = found([*"ppppp"])
    assert not none.evaluations
    assert none.notes[0].startswith("1 of 1 groups")


def test_what_cannot_be_pooled_is_refused_before_anything_is_computed(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = short_runs.changed(squares, {"data.name": "squares"})
    with pytest.raises(UsageError, match=r"group_pooling='noisy_or' .* 'squares' names none"):
        experiment.run(config, tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.stat().st_size]
    patients = open_dataset(Path(squares.data.data_dir), "patients", 16)
    words = r"'noisy_or' is no rule for a multiclass task: expected 'mean' or 'max' or ''"
    with pytest.raises(UsageError, match=words):
        check_pooling("noisy_or", Multiclass(("a", "b", "c")), patients)
    with pytest.raises(UsageError, match="'mean' is no rule for a multiclass task: expected ''"):
        check_pooling("mean", NeverPooled(("a", "b", "c")), patients)


def test_without_pooling_a_result_says_nothing_of_it(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = short_runs.changed(
        squares, {"group_pooling": "", "judges": (), "knn.k": ExperimentConfig().knn.k}
    )
    result = short_runs.run(config, tmp_path)
    assert {*result.finding.evaluations} == {"val", "test"}
