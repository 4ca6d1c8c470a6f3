"""Calibration of each class, and decisions at thresholds that validation chose."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.errors import UsageError
from fmi_jax.tasks.base import Resampling, Task
from fmi_jax.tasks.calibration import calibration, equal_width, slope_and_intercept
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.operating import Rule
from fmi_jax.tasks.predictions import Predictions
from fmi_jax.types import Rows


def drawn(task: Task, n: int, seed: int) -> dict[str, np.ndarray]:
    rng, k = np.random.default_rng(seed), len(task.classes)
    labels = rng.integers(2, size=(n, k)) if task.name == "multilabel" else rng.integers(k, size=n)
    signal = labels if task.name == "multilabel" else np.eye(k)[labels]
    return {"logits": 3 * (rng.normal(size=(n, k)) + signal - 0.5), "labels": labels}


def assessed(task: Task, rule: Rule, groups: list[str] | None = None) -> Evaluation:
    val, test = drawn(task, 97, 1), drawn(task, 101, 2)
    evaluation = task.evaluate(test)
    return task.assessed(evaluation, test, task.chosen(val, rule), rule, Resampling(53, 0, groups))


def test_errors_of_two_classes_do_not_cancel() -> None:
    """One class is called 0.15 too often and one as much too rarely."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.25, 0.75, size=4001)
    member = np.arange(len(p))
    high = calibration(p + 0.15, rng.random(len(p)) < p, member, 23, 0)
    low = calibration(p - 0.15, rng.random(len(p)) < p, member, 23, 0)
    for one in (high, low):
        assert one.error == pytest.approx(0.15, abs=0.02)
        assert one.interval[0] < one.error < one.interval[1]
        assert one.ideal < 0.04


def test_a_calibrated_model_shows_what_is_said_of_it() -> None:
    rng, found = np.random.default_rng(1), []
    p = rng.beta(2, 2, size=89)
    member = np.arange(89)
    for _ in range(60):
        found.append(calibration(p, rng.random(89) < p, member, 3, 0))
    assert np.mean([one.error for one in found]) == pytest.approx(found[0].ideal, rel=0.1)
    assert found[0].ideal > 0.08  # far from 0 on 89 images


def test_slope_and_intercept_of_a_known_model() -> None:
    rng = np.random.default_rng(2)
    log_odds = rng.normal(0, 1.5, size=40_000)
    truth = rng.random(40_000) < 1 / (1 + np.exp(-(0.5 * log_odds + 0.3)))
    slope, intercept = slope_and_intercept(1 / (1 + np.exp(-log_odds)), truth)
    assert (slope, intercept) == (pytest.approx(0.5, abs=0.03), pytest.approx(0.3, abs=0.04))
    assert math.isnan(slope_and_intercept(np.array([0.1, 0.9]), np.array([False, True]))[0])
    assert equal_width(np.array([0, 1 / 15, 0.1, 1])).tolist() == [0, 0, 1, 14]


@pytest.mark.parametrize(
    ("task", "decided"),
    [
        (Binary(("benign", "malignant")), ["malignant"]),
        (Multilabel(("a", "b", "c")), ["a", "b", "c"]),
        (Multiclass(("a", "b", "c")), []),
    ],
)
def test_thresholds_are_those_of_validation_and_values_those_of_test(
    task: Task, decided: list[str]
) -> None:
    rule = Rule("sensitivity", target=0.9, prevalence=0.05)
    found = assessed(task, rule)
    assert [*found.choices["thresholds"]] == [*found.decisions] == decided
    assert [*found.calibration] == (decided or [*task.classes])
    assert 1 < found.choices["temperature"] < 4  # logits three times as far apart as they should
    assert sum(c.scaled < c.error for c in found.calibration.values()) > len(found.calibration) / 2
    val, test = drawn(task, 97, 1), drawn(task, 101, 2)
    for name, at in found.decisions.items():
        c = task.classes.index(name)
        for split in (val, test):
            has = task.present(split["labels"])[:, c]
            called = task.probabilities(split["logits"])[:, c] >= at.threshold
            sensitivity = called[has].mean()
            if split is val:
                assert 0.9 <= sensitivity < 0.93
            else:
                assert at.values["sensitivity"] == pytest.approx(sensitivity)
                assert at.values["ppv"] == pytest.approx(has[called].mean())
        assert set(at.intervals) == {"sensitivity", "specificity", "ppv", "npv"}
        assert at.ppv < at.values["ppv"]
        assert at.npv > at.values["npv"]
    back = Evaluation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert back.to_json() == found.to_json()
    assert back.decisions == found.decisions


def test_patients_widen_the_intervals_of_decisions() -> None:
    task = Binary(("benign", "malignant"))
    width = []
    for groups in (None, [str(i // 9) for i in range(101)]):
        at = assessed(task, Rule(), groups).decisions["malignant"]
        width.append(sum(high - low for low, high in at.intervals.values()))
    assert width[1] > width[0]


def test_a_class_that_validation_lacks_has_no_threshold() -> None:
    task = Multilabel(("a", "b"))
    val = drawn(task, 31, 0)
    val["labels"][:, 1] = 0
    assert [*task.chosen(val, Rule())["thresholds"]] == ["a"]


def test_votes_have_no_temperature() -> None:
    task = Binary(("a", "b"))
    votes = task.logits(np.array([[0.0, 1.0], [0.4, 0.6], [0.8, 0.2]]))
    choices = task.chosen({"logits": votes, "labels": np.array([1, 0, 0])}, Rule())
    assert choices["temperature"] is None
    assert choices["thresholds"] == {"b": 1.0}


def test_decisions_stand_in_the_table_of_predictions(tmp_path: Path) -> None:
    task = Binary(("a", "b"))
    said = task.predictions({"logits": np.log([[0.9, 0.1], [0.6, 0.4]])}, Rows(["x", "y"]))
    assert isinstance(said, Predictions)
    said = Predictions(**{**vars(said), "thresholds": {"b": 0.25}})
    said.write(tmp_path / "new.csv")
    with (tmp_path / "new.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["decision_b"] for row in rows] == ["0", "1"]
    assert [row["predicted"] for row in rows] == ["a", "a"]


def test_nominal_classes_have_no_quadratic_kappa() -> None:
    ordinal, nominal = (Multiclass(("a", "b", "c"), ordinal=known) for known in (True, False))
    measured = drawn(ordinal, 41, 0)
    values = ordinal.evaluate(measured).values
    assert nominal.evaluate(measured).values == {
        name: value for name, value in values.items() if name != "quadratic_kappa"
    }
    assert set(values) - set(nominal.metric_names) == {"quadratic_kappa"}
    with pytest.raises(UsageError, match="unknown metric for a multiclass task 'quadratic_kappa'"):
        nominal.metric("quadratic_kappa")
    bounds = nominal.bounded(nominal.evaluate(measured), measured, Resampling(11, 0))
    assert "quadratic_kappa" not in bounds.intervals
