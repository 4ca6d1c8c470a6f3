"""Metrics: equal to the study's where it is right, to scikit-learn, and honest where undefined."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings, strategies as st
from measuring import bootstrap, evaluate
from tolerances import METRIC

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.errors import UsageError, UserError
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.registry import describe

GOLDEN = Path(__file__).parent.parent / "golden" / "metrics" / "io.npz"

# Where the study's value is not ours, and why (docs/protocols.md):
UPSTREAM_WRONG = {
    # a class without images has recall 0, an AUROC error becomes 0.5 (B25)
    ("missing_class", "recall"),
    ("missing_class", "roc_auc"),
    # a class without positives has recall 0, average precision 0 and AUROC 0.5 (B24)
    ("multilabel_no_positive", "recall"),
    ("multilabel_no_positive", "mAP"),
    ("multilabel_no_positive", "roc_auc"),
}


def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def task_for(labels, k):
    return Multilabel if labels.ndim == 2 else Binary if k == 2 else Multiclass


def names(k):
    return tuple(f"class {c}" for c in range(k))


def draw(task, n, k, seed):
    """Logits with some skill, and labels; about a third of the images are seen twice (ties)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=(n, k)) if task is Multilabel else rng.integers(k, size=n)
    signal = labels if task is Multilabel else np.eye(k)[labels]
    logits = rng.normal(size=(n, k)) + signal
    logits[rng.integers(n, size=n // 3)] = logits[rng.integers(n, size=n // 3)]
    return logits, labels


def golden_sets():
    return sorted({key.split("/")[0] for key in golden()})


@pytest.mark.parametrize("name", golden_sets())
def test_values_are_those_of_the_study(name):
    arrays = golden()
    logits, labels = arrays[f"{name}/logits"], arrays[f"{name}/labels"]
    k = logits.shape[1]
    ours = evaluate(task_for(labels, k), logits, labels, names(k))
    np.testing.assert_array_equal(ours.confusion, arrays[f"{name}/confusion_matrix"])
    prefix = f"{name}/expected/"
    expected = {key[len(prefix) :]: v for key, v in arrays.items() if key.startswith(prefix)}
    assert len(expected) >= 6
    for metric, value in expected.items():
        equal = math.isclose(ours.values[metric], float(value), abs_tol=METRIC)
        assert equal is ((name, metric) not in UPSTREAM_WRONG), metric


def test_absent_class_is_left_out_of_averages_and_named():
    arrays = golden()
    logits, labels = arrays["missing_class/logits"], arrays["missing_class/labels"]
    ours = evaluate(Multiclass, logits, labels, names(5))
    absent = set(range(5)) - set(labels.tolist())
    assert absent == {2}
    assert ours.undefined == tuple(
        f"{metric}[class 2]" for metric in ("recall", "roc_auc", "average_precision")
    )
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sklearn.metrics.balanced_accuracy_score(labels, logits.argmax(1))
    assert ours.values["recall"] == pytest.approx(balanced, abs=METRIC)
    p = Multiclass().probabilities(logits)
    pairs = [
        sklearn.metrics.roc_auc_score(labels[rows] == a, p[rows, a])
        for a in set(labels)
        for b in set(labels)
        if a != b
        for rows in [np.isin(labels, [a, b])]
    ]
    assert ours.values["roc_auc"] == pytest.approx(np.mean(pairs), abs=METRIC)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(23, 61), st.integers(0, 10**6))
def test_agrees_with_scikit_learn(k, n, seed):
    task = Binary if k == 2 else Multiclass
    logits, labels = draw(task, n, k, seed)
    labels[:k] = range(k)
    ours = evaluate(task, logits, labels, names(k))
    p, predicted = task().probabilities(logits), logits.argmax(1)
    macro = {"average": "macro", "labels": range(k), "zero_division": 0}
    sk = sklearn.metrics
    expected = {
        "quadratic_kappa": sk.cohen_kappa_score(
            labels, predicted, labels=range(k), weights="quadratic"
        ),
        "cohen_kappa": sk.cohen_kappa_score(labels, predicted, labels=range(k)),
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, **macro),
        "recall": sk.recall_score(labels, predicted, **macro),
        "f1": sk.f1_score(labels, predicted, **macro),
        "loss": sk.log_loss(labels, p),
    }
    if task is Binary:
        expected["roc_auc"] = sk.roc_auc_score(labels, p[:, 1])
        expected["average_precision"] = sk.average_precision_score(labels, p[:, 1])
    else:
        for name, kind in (("roc_auc", "ovo"), ("roc_auc_ovr", "ovr")):
            expected[name] = sk.roc_auc_score(labels, p, multi_class=kind, average="macro")
        expected["average_precision"] = sk.average_precision_score(np.eye(k)[labels], p)
    assert ours.values == pytest.approx(expected, abs=METRIC)
    for c, row in enumerate(ours.per_class.values()):
        tn, fp, fn, tp = sk.confusion_matrix(labels == c, predicted == c).ravel()
        assert row["specificity"] == pytest.approx(tn / (tn + fp), abs=METRIC)
        assert row["recall"] == pytest.approx(tp / (tp + fn), abs=METRIC)
        assert row["support"] == tp + fn
        assert math.isnan(row["precision"]) if tp + fp == 0 else row["precision"] == tp / (tp + fp)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(23, 61), st.integers(0, 10**6))
def test_multilabel_agrees_with_scikit_learn(k, n, seed):
    logits, labels = draw(Multilabel, n, k, seed)
    labels[0], labels[1] = 0, 1
    ours = evaluate(Multilabel, logits, labels, names(k))
    p, predicted = Multilabel().probabilities(logits), (logits > 0).astype(int)
    sk, macro = sklearn.metrics, {"average": "macro", "zero_division": 0}
    if k == 1:
        macro["average"] = "binary"
    assert ours.values == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "precision": sk.precision_score(labels, predicted, **macro),
            "recall": sk.recall_score(labels, predicted, **macro),
            "f1": sk.f1_score(labels, predicted, **macro),
            "roc_auc": sk.roc_auc_score(labels, logits, average="macro"),
            "mAP": sk.average_precision_score(labels, logits, average="macro"),
            "loss": -np.where(labels, np.log(p), np.log(1 - p)).mean(),
        },
        abs=METRIC,
    )
    if k > 1:
        np.testing.assert_array_equal(
            ours.confusion, sk.multilabel_confusion_matrix(labels, predicted)
        )


@pytest.mark.parametrize("task", [Binary, Multiclass, Multilabel])
def test_perfect_predictions(task):
    k = 2 if task is Binary else 5
    _, labels = draw(task, 67, k, 3)
    truth = labels if task is Multilabel else np.eye(k)[labels]
    ours = evaluate(task, 40 * (truth - 0.5), labels, names(k))
    loss = ours.values.pop("loss")
    assert loss == pytest.approx(0, abs=1e-7)
    assert set(ours.values.values()) == {1.0}
    assert ours.undefined == ()


def test_constant_predictions_have_no_skill():
    labels = np.arange(65) % 5
    ours = evaluate(Multiclass, np.tile([0.0, 0, 3, 0, 0], (65, 1)), labels, names(5))
    for metric, value in {
        "quadratic_kappa": 0, "cohen_kappa": 0, "accuracy": 0.2, "balanced_accuracy": 0.2,
        "roc_auc": 0.5, "roc_auc_ovr": 0.5, "average_precision": 0.2, "precision": 0.2 / 5,
    }.items():  # fmt: skip
        assert ours.values[metric] == pytest.approx(value, abs=METRIC), metric
    assert ours.undefined == tuple(f"precision[class {c}]" for c in (0, 1, 3, 4))


def test_one_class_in_the_split_leaves_no_ranking_and_no_kappa():
    logits = np.eye(3)[np.zeros(7, int)]
    ours = evaluate(Multiclass, logits, np.zeros(7, int), names(3))
    for metric in ("quadratic_kappa", "cohen_kappa", "roc_auc", "roc_auc_ovr"):
        assert math.isnan(ours.values[metric])
        assert metric in ours.undefined
    assert ours.values["accuracy"] == ours.values["balanced_accuracy"] == 1
    assert "specificity[class 0]" in ours.undefined


def test_a_class_between_two_others_keeps_its_distance_when_absent():
    labels, predicted = np.array([0, 0, 1, 3, 3]), np.array([0, 1, 1, 3, 1])
    ours = evaluate(Multiclass, np.eye(4)[predicted] * 9, labels, names(4))
    expected = sklearn.metrics.cohen_kappa_score(
        labels, predicted, labels=range(4), weights="quadratic"
    )
    assert ours.values["quadratic_kappa"] == pytest.approx(expected, abs=METRIC)


def test_sure_images_are_still_ranked():
    logits = np.array([[0, 60.0], [0, 50], [0, 55], [0, -50]])  # the first three: p == 1.0
    ours = evaluate(Binary, logits, np.array([1, 0, 1, 0]), names(2))
    assert ours.values["roc_auc"] == 1


def test_neighbour_votes_are_not_activated_twice():
    p = np.array([[0.6, 0.4, 0], [0.1, 0.2, 0.7], [0, 1, 0], [0.3, 0.3, 0.4]])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(Multiclass().probabilities(np.log(p)), p, atol=METRIC)
        votes = np.array([[0.4, 0.9], [0.2, 0.0], [1.0, 0.6]])
        log_odds = np.log(votes) - np.log(1 - votes)
    np.testing.assert_allclose(Multilabel().probabilities(log_odds), votes, atol=METRIC)
    ours = evaluate(Multilabel, log_odds, np.array([[0, 1], [0, 0], [1, 1]]), names(2))
    assert ours.values["accuracy"] == 1  # upstream calls every voted class positive (B12)


@pytest.mark.parametrize("task", [Binary, Multiclass, Multilabel])
def test_bootstrap_values_are_those_of_the_resampled_images(task):
    # With two groups a resample is A and A, A and B, or B and B: the interval must end at two of
    # the three values that `evaluate` gives for these.
    k = 2 if task is Binary else 4
    logits, labels = draw(task, 73, k, 5)
    group = np.arange(73) % 2
    parts = [np.flatnonzero(group == 0), np.flatnonzero(group == 1), np.arange(73)]
    values = [evaluate(task, logits[rows], labels[rows], names(k)).values for rows in parts]
    intervals = bootstrap(task, logits, labels, names(k), 97, 1, groups=group.astype(str))
    assert set(intervals) == set(values[0])
    for name, interval in intervals.items():
        several = [value[name] for value in values]
        assert interval == pytest.approx((min(several), max(several)), abs=METRIC), name


def test_bootstrap_interval_has_the_width_of_theory_and_follows_the_seed():
    n = 401
    rng = np.random.default_rng(2)
    labels, right = rng.integers(5, size=n), rng.random(n) < 0.8
    logits = np.eye(5)[np.where(right, labels, (labels + 1) % 5)]
    args = (Multiclass, logits, labels, names(5), 2000)
    low, high = bootstrap(*args, 0)["accuracy"]
    p = right.mean()
    assert low < p < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / n), rel=0.1)
    assert bootstrap(*args, 0)["accuracy"] == (low, high)
    assert bootstrap(*args, 1)["roc_auc"] != bootstrap(*args, 0)["roc_auc"]


def test_bootstrap_of_one_group_knows_no_spread():
    logits, labels = draw(Multiclass, 31, 3, 0)
    intervals = bootstrap(Multiclass, logits, labels, names(3), 11, 0, groups=["p1"] * 31)
    for low, high in intervals.values():
        assert low == pytest.approx(high, abs=METRIC)


def test_bootstrap_names_no_interval_where_there_is_no_value():
    logits = np.random.default_rng(0).normal(size=(11, 2))
    intervals = bootstrap(Binary, logits, np.ones(11, int), names(2), 7, 0)
    assert np.isnan(intervals["roc_auc"]).all()
    assert bootstrap(Binary, logits, np.ones(11, int), names(2), 0, 0) == {}


@pytest.mark.parametrize("task", [Binary, Multiclass, Multilabel])
def test_every_metric_is_described_and_every_description_measured(task):
    k = 2 if task is Binary else 3
    values = evaluate(task, *draw(task, 23, k, 0), names(k)).values
    assert set(values) == set(task.metrics)


def test_metric_of_another_task_is_refused_with_the_nearest():
    assert Multiclass().metric("quadratic_kappa").higher_is_better
    with pytest.raises(UsageError, match="Did you mean 'quadratic_kappa'") as error:
        Multiclass().metric("quadratic_kapa")
    assert error.value.exit_code == 2
    with pytest.raises(UsageError, match=r"multilabel task 'quadratic_kappa'.*Valid: .*mAP"):
        Multilabel().metric("quadratic_kappa")


def test_selection_prefers_more_except_for_loss_and_nan():
    assert describe("roc_auc").score(0.9) > describe("roc_auc").score(0.8)
    assert describe("loss").score(0.1) > describe("loss").score(0.2)
    assert describe("roc_auc").score(math.nan) == describe("loss").score(math.nan) == -math.inf


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 3, 1], "label 3 of image 1 .* from 0 to 2"), ([0, 1, -1], "label -1 of image 2")],
)
def test_label_that_is_no_class(labels, message):
    with pytest.raises(UserError, match=message):
        evaluate(Multiclass, np.zeros((3, 3)), np.array(labels), names(3))


def test_diverged_or_empty_split():
    logits = np.zeros((5, 3))
    logits[2, 1] = np.nan
    with pytest.raises(UserError, match=r"logits of 1 images \(first: image 2 .*diverged"):
        evaluate(Multiclass, logits, np.zeros(5, int), names(3))
    with pytest.raises(UserError, match="no images"):
        evaluate(Multiclass, np.zeros((0, 3)), np.zeros(0, int), names(3))
    for wrong in (1.1, -1.0):  # NaN is a label that is not known: test_unknown_labels
        with pytest.raises(UserError, match=f"label {wrong} of image 1 .* from 0 to 1"):
            evaluate(Multilabel, np.zeros((2, 1)), np.array([[1.0], [wrong]]), names(1))


def test_a_soft_label_counts_as_positive_from_one_half_on():
    logits, hard = draw(Multilabel, 37, 3, 4)
    soft = np.where(hard, np.linspace(0.5, 1, 111).reshape(37, 3), 0.49)
    np.testing.assert_array_equal(Multilabel().hard_labels(soft), hard)
    args = (Multilabel, logits)
    assert evaluate(*args, soft, names(3)).values == evaluate(*args, hard, names(3)).values
    assert bootstrap(*args, soft, names(3), 5, 0) == bootstrap(*args, hard, names(3), 5, 0)


@pytest.mark.parametrize("task", [Binary, Multiclass, Multilabel])
def test_a_group_of_classes_has_the_mean_auroc_of_these(task):
    k = 2 if task is Binary else 5
    logits, labels = draw(task, 73, k, 6)
    groups = {"pair": ("class 1", "class 0"), "one": ("class 1",)}
    ours = evaluate(task, logits, labels, names(k), groups)
    truth = labels if task is Multilabel else np.eye(k)[labels]
    p = task().probabilities(logits)
    auc = [sklearn.metrics.roc_auc_score(truth[:, c], p[:, c]) for c in (0, 1)]
    assert ours.values["roc_auc_pair"] == pytest.approx(np.mean(auc), abs=METRIC)
    assert ours.values["roc_auc_one"] == pytest.approx(auc[1], abs=METRIC)
    plain = evaluate(task, logits, labels, names(k))
    assert set(ours.values) - set(plain.values) == {"roc_auc_pair", "roc_auc_one"}
    assert Evaluation.from_json(ours.to_json()).values == ours.values
    low, high = bootstrap(task, logits, labels, names(k), 97, 1, class_groups=groups)[
        "roc_auc_pair"
    ]
    assert low < ours.values["roc_auc_pair"] < high


def test_a_group_leaves_out_classes_without_images_and_is_named_when_none_is_left():
    logits, labels = draw(Multilabel, 31, 3, 0)
    labels[:, 0], labels[:, 1] = 0, 1
    groups = {"some": ("class 0", "class 2"), "none": ("class 0", "class 1")}
    ours = evaluate(Multilabel, logits, labels, names(3), groups)
    assert ours.values["roc_auc_some"] == ours.per_class["class 2"]["roc_auc"]
    assert math.isnan(ours.values["roc_auc_none"])
    assert "roc_auc_none" in ours.undefined
    assert "roc_auc_some" not in ours.undefined


def test_the_metric_of_a_group_can_select_and_is_described():
    task = Multilabel(("a", "b"), {"competition": ("a",)})
    assert task.metric("roc_auc_competition").score(0.9) == 0.9
    with pytest.raises(UsageError, match="Did you mean 'roc_auc_competition'"):
        task.metric("roc_auc_competiton")
    with pytest.raises(UsageError, match="unknown metric for a multilabel task"):
        Multilabel().metric("roc_auc_competition")
    assert describe("roc_auc_competition").score(0.9) == 0.9
    assert "competition" in describe("roc_auc_competition", "multilabel").label
    with pytest.raises(UsageError, match="unknown metric 'kappa'"):
        describe("kappa")


def test_evaluation_survives_strict_json():
    logits, labels = draw(Multiclass, 29, 5, 1)
    labels[labels == 3] = 2
    ours = evaluate(Multiclass, logits, labels, names(5))
    text = json.dumps(ours.to_json(), allow_nan=False)
    back = Evaluation.from_json(json.loads(text))
    np.testing.assert_equal(back.per_class, ours.per_class)
    np.testing.assert_array_equal(back.confusion, ours.confusion)
    assert back.values == ours.values
    assert (back.undefined, back.classes, back.task) == (ours.undefined, ours.classes, ours.task)


def test_one_class_for_all_images_is_said_in_words():
    labels = np.array([0, 1, 1, 2, 1])
    same = Multiclass(names(3)).evaluate({"logits": np.eye(3)[[1] * 5], "labels": labels})
    assert Multiclass(names(3)).warning(same) == (
        "Only one class is predicted for all 5 test images (class 1): nothing is told apart."
    )
    other = Multiclass(names(3)).evaluate({"logits": np.eye(3)[[1, 1, 1, 1, 0]], "labels": labels})
    assert Multiclass(names(3)).warning(other) == ""


def test_the_same_classes_for_all_images_are_said_in_words():
    labels, task = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 1]]), Multilabel(names(3))
    logits = np.array([[-3.0, 3, -2], [-1, 1, -1], [-2, 2, -1]])
    told = task.warning(task.evaluate({"logits": logits, "labels": labels}))
    assert told.startswith("The same classes are predicted for all 3 test images (class 1): ")
    none = task.warning(task.evaluate({"logits": -np.abs(logits), "labels": labels}))
    assert "(none)" in none
    logits[0, 2] = 1
    assert task.warning(task.evaluate({"logits": logits, "labels": labels})) == ""
