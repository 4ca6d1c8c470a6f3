"""The statistics of a study: against hand values, known distributions and scipy."""

import math

import numpy as np
import pytest
import scipy.stats
from study_trees import Images

from fmi_jax.study.published import rows
from fmi_jax.study.report.statistics import (
    drawn_mean,
    mean_relative,
    optimism,
    paired_p,
    rank_correlation,
    reliability,
    two_level,
    two_sample_p,
)
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.intervals import holm
from fmi_jax.tasks.weighted import draw_times, interval


@pytest.mark.parametrize("task", [Binary, Multiclass, Multilabel])
def test_condensed_rows_give_the_very_same_metrics(task):
    rng, n, groups = np.random.default_rng(0), 120, 50
    k = 2 if task is Binary else 4
    labels = rng.integers(2, size=(n, k)) if task is Multilabel else rng.integers(k, size=n)
    logits = rng.normal(size=(n, k)).round(1)  # with ties
    member = rng.integers(groups, size=n)
    times = rng.multinomial(groups, np.full(groups, 1 / groups), size=20).astype(float)
    on_set = task(tuple("abcd"[:k]), {"some": ("a", "b")})
    measured = {"logits": logits, "labels": labels}
    full = on_set.values(measured, times[:, member])
    assert len(full) > 6
    for metric, expected in full.items():
        found = on_set.resampled(measured, metric, member, times)
        np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True, err_msg=metric)
    metric = "roc_auc" if task is not Multiclass else "recall"
    (first, *_) = on_set.condensed(measured, metric)
    assert len(first.logits) < n


def test_a_condensed_class_without_images_stays_undefined():
    labels, logits = np.array([[1, 0], [0, 0]]), np.array([[1.0, 2.0], [0.0, 1.0]])
    measured = {"logits": logits, "labels": labels}
    times = np.array([[1.0, 1.0], [2.0, 0.0]])
    found = Multilabel(("a", "b")).resampled(measured, "roc_auc", np.arange(2), times)
    np.testing.assert_equal(found, [1.0, math.nan])  # class 2 has no positive; nor has any in row 2


def resampled(images: Images, metric: str, groups, resamples=1000, skill=1.0):
    predictions = images.predictions(skill, seed=3)
    task = images.task(images.classes)
    measured = {"logits": task.logits(predictions.probabilities), "labels": predictions.labels}
    blocks = draw_times(groups.max() + 1, resamples, seed=1)
    return np.concatenate([task.resampled(measured, metric, groups, block) for block in blocks])


def test_the_bootstrap_of_accuracy_has_its_binomial_error():
    images = Images(count=400)
    values = resampled(images, "accuracy", np.arange(400))
    share = values.mean()
    expected = 2 * 1.96 * math.sqrt(share * (1 - share) / 400)
    low, high = interval(values)
    assert high - low == pytest.approx(expected, rel=0.1)
    assert low < share < high


def test_drawing_groups_is_wider_where_their_images_are_alike():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(100) < 0.7, 4)  # all four images of a patient, or none
    labels = np.zeros(400, int)
    logits = np.where(right[:, None], [1.0, 0.0], [0.0, 1.0])
    task, measured = Binary(("a", "b")), {"logits": logits, "labels": labels}

    def width(member):
        blocks = draw_times(member.max() + 1, 1000, seed=1)
        found = [task.resampled(measured, "accuracy", member, block) for block in blocks]
        low, high = interval(np.concatenate(found))
        return high - low

    assert width(np.arange(400) // 4) == pytest.approx(2 * width(np.arange(400)), rel=0.15)


def test_resamples_are_the_same_for_the_same_seed_and_count_every_draw():
    first = np.concatenate(list(draw_times(700, 2000, seed=4)))  # in several blocks
    again = np.concatenate(list(draw_times(700, 2000, seed=4)))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (2000, 700)
    assert (first.sum(axis=1) == 700).all()
    assert not np.array_equal(first, np.concatenate(list(draw_times(700, 2000, seed=5))))


def test_two_levels_cover_images_and_seeds():
    rng = np.random.default_rng(0)
    images, seeds = rng.normal(0, 0.03, 20_000), rng.normal(0, 0.05, 5)
    values = seeds[:, None] + images
    found = two_level(values, seed=0)
    of_seeds = seeds.var() / 5  # of a mean of five draws with replacement
    assert found.var() == pytest.approx(images.var() + of_seeds, rel=0.05)
    np.testing.assert_array_equal(two_level(values[:1], seed=0), values[0])


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, math.nan, 0.9]), [1.0, math.nan, 1.0])
    assert len(holm([])) == 0


def test_a_paired_test_of_the_same_is_one_and_of_the_apart_is_least():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 999)
    assert paired_p(0.0, np.zeros(999)) == 1.0
    assert paired_p(0.2, 0.2 + noise) == 1 / 1000
    assert paired_p(0.01, 0.01 + noise) == pytest.approx(2 * scipy.stats.norm.sf(1), abs=0.05)
    assert paired_p(0.2, np.r_[0.2 + noise, math.nan]) == 1 / 1000  # undefined: does not count
    assert math.isnan(paired_p(math.nan, noise))


@pytest.mark.parametrize(("rows", "errors"), [(8, 1.42), (13, 1.67)])
def test_the_highest_of_equal_rows_looks_better_than_it_is(rows, errors):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(rows, 1))  # points of the rows, which do not matter
    apart = means + rng.normal(size=(rows, 20_000))
    assert optimism(apart) == pytest.approx(errors, abs=0.02)
    shared = means + rng.normal(size=20_000)  # rows that err alike are ranked as they are
    assert optimism(shared) == pytest.approx(0, abs=1e-9)
    assert optimism(np.where(np.arange(20_000) == 3, math.nan, apart)) == pytest.approx(
        errors, abs=0.02
    )


def test_a_published_mean_is_drawn_within_the_spread_of_its_runs():
    drawn = drawn_mean(0.8, 0.02, 5, 50_000, seed=1)
    expected = scipy.stats.t.interval(0.95, 4, 0.8, 0.02 / math.sqrt(5))
    assert interval(drawn) == pytest.approx(expected, abs=1e-3)


def test_pairing_finds_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.05, 2000)  # shared by both
    a, b = 0.82 + images, 0.80 + images + rng.normal(0, 0.003, 2000)
    assert interval(a)[0] < interval(b)[1]
    assert paired_p(0.02, a - b) < 0.001


def published(table: str, dataset: str, head: str) -> dict[str, float]:
    return {
        row["model"]: row["mean"]
        for row in rows()
        if (row["table"], row["dataset"], row.get("head")) == (table, dataset, head)
    }


def test_rank_correlation_is_that_of_scipy_on_published_numbers():
    frozen = published("huix2024_table1", "aptos2019", "linear")
    tuned = published("huix2024_table2", "aptos2019", "linear")
    x, y = list(frozen.values()), [tuned[model] for model in frozen]
    found = rank_correlation(x, y)
    assert found is not None
    assert (found.n, found.exact) == (8, True)
    assert len({*x}) == len({*y}) == 8  # no ties: scipy's p is exact
    tau = scipy.stats.kendalltau(x, y, method="exact")
    assert (found.tau, found.tau_p) == pytest.approx((tau.statistic, tau.pvalue))

    def rho(some):
        return scipy.stats.spearmanr(some, y).statistic

    few = x[:5], y[:5]
    exact = scipy.stats.permutation_test(
        (few[0],),
        lambda some: scipy.stats.spearmanr(some, few[1]).statistic,
        permutation_type="pairings",
        vectorized=False,
    )
    assert found.rho == pytest.approx(rho(x))
    found = rank_correlation(*few)
    assert found is not None
    assert (found.rho, found.rho_p) == pytest.approx((exact.statistic, exact.pvalue))


def test_rank_correlation_of_many_rows_with_ties_is_close_to_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=13).round(1)
    y = (x + rng.normal(size=13)).round(1)
    found = rank_correlation(x.tolist(), y.tolist())
    tau = scipy.stats.kendalltau(x, y)
    assert found is not None
    assert not found.exact
    assert found.tau == pytest.approx(tau.statistic)
    assert found.tau_p == pytest.approx(tau.pvalue, abs=0.02)


def test_too_few_or_constant_rows_have_no_rank_correlation():
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]) is None


def test_reliability_by_hand():
    p = np.array([0.1, 0.2, 0.6, 0.8])
    found = reliability(p, np.array([False, True, True, True]), bins=2)
    np.testing.assert_allclose(found.confidence, [0.15, 0.7])
    np.testing.assert_allclose(found.frequency, [0.5, 1.0])
    assert found.ece == pytest.approx((0.35 + 0.3) / 2)
    one = reliability(np.full(6, 0.5), np.arange(6) < 3)  # equal ones share a bin
    assert (len(one.confidence), one.ece) == (1, 0.0)


def test_a_calibrated_classifier_is_on_the_diagonal():
    rng = np.random.default_rng(0)
    p = rng.random(40_000)
    calibrated, sure = (
        reliability(p, rng.random(40_000) < p),
        reliability(p**0.3, rng.random(40_000) < p),
    )
    assert calibrated.ece < 0.01
    assert sure.ece > 0.2


def test_a_mean_gain_by_hand():
    values = {"a": np.array([0.66]), "b": np.array([0.45])}
    bases = {"a": np.array([0.6]), "b": np.array([0.5])}
    np.testing.assert_allclose(mean_relative(values, bases), [0.0], atol=1e-12)
    np.testing.assert_allclose(mean_relative(values, {"a": bases["a"]}), [10.0])


def test_two_samples_are_compared_as_scipy_does_and_only_where_they_vary():
    first, second = np.array([0.81, 0.83, 0.82, 0.84]), np.array([0.79, 0.80, 0.82])
    expected = scipy.stats.ttest_ind(first, second, equal_var=True).pvalue
    assert two_sample_p(first, second) == pytest.approx(expected)
    assert two_sample_p(first, first) == pytest.approx(1)
    assert math.isnan(two_sample_p(first, second[:1]))
    assert math.isnan(two_sample_p(np.full(3, 0.5), np.full(3, 0.5)))
