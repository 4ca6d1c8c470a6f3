"""Intervals: averages run over the classes of the data, and no interval is one that cannot be."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks import uncertainty
from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.tasks.base import Resampling, Task
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.intervals import auroc, delong, proportion, scaled, wilson
from fmi_jax.tasks.weighted import draw_times, interval, resample


def bounded(
    task: Task, logits: np.ndarray, labels: np.ndarray, groups: list[str] | None = None
) -> Evaluation:
    measured = {"logits": logits, "labels": labels}
    return task.bounded(task.evaluate(measured), measured, Resampling(101, 0, groups))


def findings() -> tuple[Multilabel, np.ndarray, np.ndarray]:
    """Three findings: the second has one positive, which ranks last; the third has none."""
    rng = np.random.default_rng(0)
    labels = np.zeros((67, 3), int)
    labels[:23, 0], labels[11, 1] = 1, 1
    logits = rng.normal(size=(67, 3)) + 2 * labels
    logits[11, 1] = -9
    return Multilabel(("common", "single", "none")), logits, labels


def test_an_average_has_the_same_classes_on_every_resample() -> None:
    task, logits, labels = findings()
    measured = task.checked({"logits": logits, "labels": labels})
    drawn = task.bootstrap(measured, Resampling(211, 3))
    each = np.stack([drawn.values[f"roc_auc[{name}]"] for name in ("common", "single")])
    assert not np.isnan(each).any()
    np.testing.assert_allclose(drawn.values["roc_auc"], each.mean(axis=0), rtol=1e-12)
    # A resample lacks a single image with probability (1 - 1/67)^67 = 0.366.
    assert 50 < drawn.redrawn < 105
    low, high = bounded(task, logits, labels).intervals["roc_auc"]
    assert low < task.evaluate(measured).values["roc_auc"] < high < 0.6  # once up to 0.95


def test_a_weighting_without_a_class_leaves_the_average_undefined() -> None:
    task, logits, labels = findings()
    weights = np.ones((2, 67))
    weights[1, 11] = 0
    values = task.values({"logits": logits, "labels": labels}, weights)
    for name in ("recall", "roc_auc", "mAP"):
        assert np.isnan(values[name]).tolist() == [False, True], name


def test_resamples_that_hold_every_kind_are_those_drawn_first() -> None:
    kinds = np.zeros((31, 2), bool)
    kinds[5, 0] = True  # nothing has the second kind, which is not asked for
    member = np.arange(31)
    plain = np.concatenate([*draw_times(31, 97, 4)])
    blocks = [*resample(kinds, member, 97, 4)]
    found = np.concatenate([times for times, _ in blocks])
    whole = plain[:, 5] > 0
    np.testing.assert_array_equal(found[whole], plain[whole])
    assert sum(redrawn for _, redrawn in blocks) == (~whole).sum() > 0
    assert (found[:, 5] > 0).all()
    assert (found.sum(axis=1) == 31).all()
    apart = np.concatenate([times for times, _ in resample(kinds, member, 97, 4, size=200_003)])
    np.testing.assert_array_equal(found, apart)  # blocks do not matter


def test_a_set_that_no_resample_can_hold_has_no_interval() -> None:
    n = 29  # one image of each class: a resample that has all is a permutation
    task = Multiclass(tuple(map(str, range(n))))
    found = bounded(task, np.random.default_rng(0).normal(size=(n, n)), np.arange(n))
    assert "recall" not in found.intervals
    assert "accuracy" in found.intervals  # needs no resample


def test_an_undefined_metric_has_no_interval() -> None:
    task = Binary(("a", "b"))
    logits = task.logits(np.array([[0.6, 0.4], [0, 1], [0.3, 0.7], [0.2, 0.8], [0.9, 0.1]]))
    found = bounded(task, logits, np.array([0, 0, 1, 1, 1]))
    assert math.isnan(found.values["loss"])  # the second image is impossible
    assert "loss" in found.undefined
    assert "loss" not in found.intervals


@pytest.mark.parametrize("task", [Binary(("a", "b")), Multiclass(("a", "b", "c"))])
def test_a_perfect_score_is_not_certain(task: Task) -> None:
    k = len(task.classes)
    labels = np.arange(25) % k
    found = bounded(task, 9.0 * np.eye(k)[labels], labels)
    low, high = found.intervals["accuracy"]
    assert (low, high) == (pytest.approx(25 / (25 + 1.959964**2)), 1)
    assert found.methods["accuracy"] == "Wilson"
    assert all(low < high for low, high in found.intervals.values())
    assert "recall" not in found.intervals  # every resample is perfect
    low, high = found.intervals["roc_auc[b]"]
    assert 0.8 < low < high == 1
    assert found.methods["roc_auc[b]"] == "Newcombe"


def test_one_positive_image_gives_no_interval_of_its_auroc() -> None:
    task, logits, labels = findings()
    found = bounded(task, logits, labels)
    assert "roc_auc[single]" not in found.intervals
    assert "roc_auc[common]" in found.intervals
    assert set(found.intervals) == set(found.methods)


def test_every_interval_holds_its_value_and_stays_in_bounds() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(4, size=61)
    logits = rng.normal(size=(61, 4)) + 2 * np.eye(4)[labels]
    task = Multiclass(tuple("abcd"))
    groups = [str(i // 2) for i in range(61)]
    for one in (bounded(task, logits, labels), bounded(task, logits, labels, groups)):
        assert set(one.intervals) == set(one.named())
        for name, (low, high) in one.intervals.items():
            metric = task.find_metric(name)
            least, most = (0, 1) if metric is None else metric.bounds
            assert least <= low <= one.named()[name] <= high <= most, name
            assert low < high, name


def test_wilson_is_that_of_scipy() -> None:
    for hits, count in ((0, 7), (3, 7), (7, 7), (40, 41)):
        found = wilson(hits / count, count)
        theirs = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert not wilson(math.nan, 0).defined


def test_images_of_a_patient_count_less() -> None:
    hit = np.arange(60) % 5 > 0
    alone, counted = np.arange(60), np.ones(60, bool)
    single = proportion(hit, counted, alone)
    same = proportion(hit.repeat(4), counted.repeat(4), alone.repeat(4))  # four copies of each
    assert (same.low, same.high) == pytest.approx((single.low, single.high), abs=5e-3)
    assert proportion(hit.repeat(4), counted.repeat(4), np.arange(240)).low > single.low + 0.03
    all_hit = proportion(counted.repeat(4), counted.repeat(4), alone.repeat(4))
    assert all_hit == wilson(1.0, 60)
    assert not proportion(hit, counted, np.zeros(60, int)).defined
    scores, truth = np.random.default_rng(1).normal(size=60) + hit, hit
    once = auroc(scores, truth, alone)
    copies = auroc(scores.repeat(4), truth.repeat(4), alone.repeat(4))
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=5e-3)
    assert auroc(scores.repeat(4), truth.repeat(4), np.arange(240)).low > once.low + 0.03


def test_delong_with_groups_is_the_variance_of_a_bootstrap_of_them() -> None:
    rng = np.random.default_rng(4)
    member = np.arange(180) // 3  # both classes in most groups
    truth = rng.random(180) < 0.5
    scores = rng.normal(size=180) + truth + rng.normal(size=60)[member]
    task = Binary(("a", "b"))
    measured = {"logits": np.stack([0 * scores, scores], axis=1), "labels": truth.astype(int)}
    drawn = task.bootstrap(measured, Resampling(2000, 0, member.astype(str).tolist())).values[
        "roc_auc"
    ]
    _, covariance = delong(scores[None], truth, member)
    assert math.sqrt(covariance[0, 0]) == pytest.approx(drawn.std(), rel=0.06)


def test_a_scaled_interval_respects_every_kind_of_bound() -> None:
    one = scaled(0.97, 0.02, (0.0, 1.0))
    assert 0.88 < one.low < 0.97 < one.high < 1
    assert one.high - 0.97 < 0.97 - one.low
    kappa = scaled(2 * 0.97 - 1, 2 * 0.02, (-1.0, 1.0))
    assert (kappa.low, kappa.high) == pytest.approx((2 * one.low - 1, 2 * one.high - 1))
    loss = scaled(2.0, 0.2, (0.0, math.inf))
    assert loss.low * loss.high == pytest.approx(4)
    for value, error in ((1.0, 0.1), (0.5, 0.0), (math.nan, 0.1), (0.5, math.nan)):
        assert not scaled(value, error, (0.0, 1.0)).defined
    assert math.isnan(interval(np.array([0.1, math.nan]))[0])


def test_the_script_of_the_tables_runs() -> None:
    rows = "\n".join(
        line
        for table in (
            uncertainty.coverage(2, 7, size=211),
            uncertainty.class_set(17),
            uncertainty.false_differences(2, 17),
            uncertainty.optimism(100),
            uncertainty.calibrated_ece(2),
        )
        for line in table
    )
    for part in ("| quadratic kappa | 90 |", "13: 17 (", "| 0.006 |", "| equal rows |", "| 2533 |"):
        assert part in rows, part
