"""Labels that are not known (NaN): they count neither in a loss nor in a metric."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
import torch
from tolerances import METRIC, SAME_FLOAT32

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.settings import LossConfig
from fmi_jax.tasks import calibration
from fmi_jax.tasks.base import Resampling, members
from fmi_jax.tasks.classification import Multilabel
from fmi_jax.tasks.examples import confident_mistakes
from fmi_jax.tasks.operating import Rule, decide
from fmi_jax.tasks.predictions import read_predictions
from fmi_jax.types import Rows

N, CLASSES = 211, ("a", "b", "c", "d", "e")
TASK = Multilabel(CLASSES, {"pair": ("a", "c")})


def drawn():
    """Logits of some skill, with ties, and labels a fifth of which are not known."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (N, 5)).astype(np.float32)
    logits = np.round(rng.normal(size=(N, 5)) + labels, 1) + 0.01
    return logits, np.where(rng.random((N, 5)) < 0.2, np.nan, labels).astype(np.float32)


LOGITS, LABELS = drawn()
KNOWN = ~np.isnan(LABELS)
MEASURED = {"logits": LOGITS, "labels": LABELS}
GROUPS = [str(i // 3) for i in range(N)]


def of_class(c):
    """Labels and logits of the images whose label of a class is known."""
    return LABELS[KNOWN[:, c], c].astype(int), LOGITS[KNOWN[:, c], c]


def test_metrics_of_a_class_are_those_of_scikit_learn_on_the_images_it_is_known_of():
    ours = TASK.evaluate(MEASURED)
    for c, name in enumerate(CLASSES):
        truth, scores = of_class(c)
        said = scores > 0
        expected = {
            "support": truth.sum(),
            "roc_auc": sklearn.metrics.roc_auc_score(truth, scores),
            "average_precision": sklearn.metrics.average_precision_score(truth, scores),
            "f1": sklearn.metrics.f1_score(truth, said),
            "precision": sklearn.metrics.precision_score(truth, said),
            "recall": sklearn.metrics.recall_score(truth, said),
            "specificity": sklearn.metrics.recall_score(1 - truth, ~said),
        }
        assert ours.per_class[name] == pytest.approx(expected, abs=METRIC)
        table = sklearn.metrics.confusion_matrix(truth, said)
        np.testing.assert_array_equal(ours.confusion[c], table)
    for metric, of in (("roc_auc", "roc_auc"), ("mAP", "average_precision"), ("f1", "f1")):
        mean = np.mean([ours.per_class[name][of] for name in CLASSES])
        assert ours.values[metric] == pytest.approx(mean)
    pair = np.mean([ours.per_class[name]["roc_auc"] for name in "ac"])
    assert ours.values["roc_auc_pair"] == pytest.approx(pair)


def test_accuracy_is_of_images_known_altogether_and_the_loss_of_all_known_labels():
    ours, whole = TASK.evaluate(MEASURED), KNOWN.all(axis=1)
    expected = sklearn.metrics.accuracy_score(LABELS[whole].astype(int), LOGITS[whole] > 0)
    assert ours.values["accuracy"] == pytest.approx(expected)
    truth, scores = (np.concatenate(part) for part in zip(*map(of_class, range(5)), strict=True))
    p = 1 / (1 + np.exp(-scores))
    assert ours.values["loss"] == pytest.approx(sklearn.metrics.log_loss(truth, p))


def test_a_class_of_which_nothing_is_known_has_no_metric_and_no_part_in_an_average():
    labels = LABELS.copy()
    labels[:, 1] = np.nan
    measured = {"logits": LOGITS, "labels": labels}
    ours = TASK.bounded(TASK.evaluate(measured), measured, Resampling(7, 0))
    row = ours.per_class["b"]
    assert row.pop("support") == 0
    assert np.isnan([*row.values()]).all()
    others = np.mean([ours.per_class[name]["roc_auc"] for name in "acde"])
    assert ours.values["roc_auc"] == pytest.approx(others)
    assert np.isnan(ours.values["accuracy"])  # no image is known altogether
    times = np.ones((1, N))
    assert TASK.resampled(TASK.checked(measured), "roc_auc", np.arange(N), times) == pytest.approx(
        others
    )
    assessed = TASK.assessed(
        ours, measured, TASK.chosen(measured, Rule()), Rule(), Resampling(7, 0)
    )
    assert [*assessed.calibration] == [*assessed.decisions] == ["a", "c", "d", "e"]


@pytest.mark.parametrize("metric", ["roc_auc", "roc_auc_pair", "loss", "accuracy"])
def test_resamples_from_fewer_rows_are_those_of_the_images(metric):
    member = members(GROUPS, N)
    times = np.random.default_rng(0).multinomial(71, np.ones(71) / 71, size=7).astype(float)
    measured = TASK.checked(MEASURED)
    np.testing.assert_allclose(
        TASK.resampled(measured, metric, member, times),
        TASK.values(measured, times[:, member])[metric],
        rtol=METRIC,
    )


def test_intervals_are_those_of_the_images_that_are_known():
    ours = TASK.bounded(TASK.evaluate(MEASURED), MEASURED, Resampling(11, 0, GROUPS))
    for c, name in enumerate(CLASSES):
        rows = KNOWN[:, c]
        one = {"logits": LOGITS[rows], "labels": np.where(np.isnan(LABELS), 0, LABELS)[rows]}
        groups = [group for group, known in zip(GROUPS, rows, strict=True) if known]
        theirs = TASK.bounded(TASK.evaluate(one), one, Resampling(11, 0, groups))
        for metric in ("precision", "recall", "specificity", "roc_auc"):
            key = f"{metric}[{name}]"
            assert ours.intervals[key] == pytest.approx(theirs.intervals[key]), key


def test_a_resample_has_an_image_of_every_kind():
    labels = np.full((N, 5), np.nan)
    labels[:, 0] = np.arange(N) % 2
    labels[3] = labels[4] = 1, 0, 1, 0, 1
    kinds = TASK.kinds({"logits": LOGITS, "labels": labels})
    held = kinds.sum(axis=0)
    assert held[:5].tolist() == [106, 0, 2, 0, 2]  # with each class; row 4 has the class a as well
    assert held[5:10].tolist() == [105, 2, 0, 2, 0]
    assert held[10] == 2


def test_choices_and_calibration_are_those_of_the_images_that_are_known():
    rule, member = Rule(), members(GROUPS, N)
    choices = TASK.chosen(MEASURED, rule)
    p = TASK.probabilities(LOGITS)
    ours = TASK.assessed(TASK.evaluate(MEASURED), MEASURED, choices, rule, Resampling(7, 0, GROUPS))
    for c, name in enumerate(CLASSES):
        truth, rows = of_class(c)[0].astype(bool), KNOWN[:, c]
        threshold = rule.choose(p[rows, c], truth)
        assert choices["thresholds"][name] == threshold
        assert ours.decisions[name] == decide(p[rows, c], truth, member[rows], threshold, 0.0)
        assert ours.calibration[name].brier == calibration.brier(p[rows, c], truth)
        observed, _ = calibration.calibration_error(p[rows, c], truth)
        assert ours.calibration[name].error == observed

    def cost(temperature):
        terms = np.logaddexp(0, LOGITS / temperature) - np.nan_to_num(LABELS) * LOGITS / temperature
        return terms[KNOWN].mean()

    best = choices["temperature"]
    assert cost(best) < min(cost(best * 1.01), cost(best / 1.01))
    stated, came_true = TASK.outcomes(TASK.checked(MEASURED))
    np.testing.assert_array_equal(np.isnan(stated), ~KNOWN)
    np.testing.assert_array_equal(came_true[KNOWN], LABELS[KNOWN] == 1)


def loss_and_slope(task, labels):
    def total(logits):
        found = task.loss(logits, {"labels": labels})[0]
        return found.sum(), found

    (_, found), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(LOGITS.astype(np.float32))
    return np.asarray(found), np.asarray(slope)


class Plain:
    """The loss of labels that are all known."""

    def loss(self, outputs, batch):
        return optax.sigmoid_binary_cross_entropy(outputs, batch["labels"]).mean(axis=-1), {}


def test_the_loss_is_the_known_part_of_the_sum_and_that_of_known_labels_to_the_bit():
    zeros = np.nan_to_num(LABELS)
    for ours, plain in zip(
        loss_and_slope(TASK, zeros), loss_and_slope(Plain(), zeros), strict=True
    ):
        np.testing.assert_array_equal(ours, plain)
    found, slope = loss_and_slope(TASK, LABELS)
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(zeros.astype(np.float64)), reduction="none"
    )
    expected = np.where(KNOWN, terms.numpy(), 0).sum(axis=1) / 5
    np.testing.assert_allclose(found, expected, rtol=10 * SAME_FLOAT32, atol=SAME_FLOAT32)
    assert (slope[~KNOWN] == 0).all()
    np.testing.assert_array_equal(slope[KNOWN], loss_and_slope(Plain(), zeros)[1][KNOWN])
    nothing = TASK.loss(jnp.ones((1, 5)), {"labels": np.full((1, 5), np.nan)})[0]
    assert nothing.tolist() == [0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_with_weights_leaves_out_what_is_not_known(smoothing):
    positives, known = np.nansum(LABELS, axis=0), KNOWN.sum(axis=0)
    options = LossConfig(class_weights="balanced", label_smoothing=smoothing, focal_gamma=2.0)
    objective = TASK.objective(options, positives, known)
    np.testing.assert_allclose(objective.weights, (known - positives) / positives)
    found, slope = loss_and_slope(objective, LABELS)
    parts = [loss_and_slope(objective, np.where(KNOWN, LABELS, fill)) for fill in (0, 1)]
    assert np.isfinite(found).all()
    assert (slope[~KNOWN] == 0).all()
    for _, other in parts:
        np.testing.assert_array_equal(slope[KNOWN], other[KNOWN])
    whole = KNOWN.all(axis=1)
    np.testing.assert_array_equal(found[whole], parts[0][0][whole])
    assert (found[~whole] < parts[0][0][~whole]).all()


def test_predictions_are_read_as_they_were_written(tmp_path):
    rows = Rows([f"image {i}" for i in range(N)], GROUPS)
    TASK.keep(tmp_path / "predictions.csv", MEASURED, rows)
    text = (tmp_path / "predictions.csv").read_text()
    assert "nan" not in text.lower()
    first = dict(zip(*(line.split(",") for line in text.splitlines()[:2]), strict=True))
    for c, name in enumerate(CLASSES):
        assert first[f"label_{name}"] == (str(int(LABELS[0, c])) if KNOWN[0, c] else "")
    measured, _ = TASK.read(tmp_path / "predictions.csv")
    np.testing.assert_array_equal(measured["labels"], LABELS)
    again, ours = TASK.evaluate(measured), TASK.evaluate(MEASURED)
    assert again.values == pytest.approx(ours.values)
    # Labels that are all known stay whole numbers.
    TASK.keep(tmp_path / "known.csv", {**MEASURED, "labels": np.nan_to_num(LABELS)}, rows)
    table = read_predictions(tmp_path / "known.csv", TASK.label, CLASSES)
    assert table.labels.dtype == np.int64


def test_what_is_not_known_is_no_mistake(tmp_path):
    TASK.keep(tmp_path / "predictions.csv", MEASURED, Rows([*map(str, range(N))], None))
    table = read_predictions(tmp_path / "predictions.csv", TASK.label, CLASSES)
    wrong = ((LOGITS > 0) != (LABELS == 1)) & KNOWN
    assert sorted(confident_mistakes(table, N)) == np.flatnonzero(wrong.any(axis=1)).tolist()
    shown = TASK.examples(tmp_path / "predictions.csv", lambda row: np.zeros((2, 2, 1), np.uint8))
    for example in itertools.chain(*(group.examples for group in shown)):
        row = int(example.id)
        has = [name for c, name in enumerate(CLASSES) if LABELS[row, c] == 1]
        assert example.label == (", ".join(has) or "none")


def test_figures_show_the_images_that_are_known(tmp_path):
    TASK.keep(tmp_path / "predictions.csv", MEASURED, Rows([*map(str, range(N))], None))
    evaluation: Evaluation = TASK.evaluate(MEASURED)
    assert {*TASK.figures(tmp_path / "predictions.csv", evaluation)} == {"roc", "precision_recall"}
