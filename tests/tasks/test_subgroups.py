"""Subgroups: a planted gap is found, a missing one is not, and few images say nothing."""

import math

import numpy as np
import pytest
import scipy.stats

from fmi_jax.artifacts.evaluation import Subgroups
from fmi_jax.tasks.base import Resampling
from fmi_jax.tasks.classification import Binary
from fmi_jax.tasks.subgroups import levels, subgroups

TASK = Binary(("benign", "malignant"))


def measured(seed: int, bad: np.ndarray) -> dict[str, np.ndarray]:
    """Images of which the `bad` ones have no signal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=len(bad))
    score = rng.normal(size=len(bad)) + 2 * labels * ~bad
    return {"logits": np.stack([0 * score, score], axis=1), "labels": labels}


def found(seed: int, bad: np.ndarray, **columns: list[str]) -> tuple[Subgroups, ...]:
    return subgroups(TASK, measured(seed, bad), columns, "roc_auc", Resampling(199, seed))


def test_a_planted_gap_is_found_and_is_a_weight_of_0_and_1() -> None:
    old = np.arange(211) % 2 == 1
    site = ["north" if i % 3 else "south" for i in range(211)]
    site[:9] = ["east"] * 9
    age, place = found(0, old, age=["old" if o else "young" for o in old], site=site)
    assert (age.column, age.worst) == ("age", "old")
    assert age.p < 0.02
    data = TASK.checked(measured(0, old))
    for name, rows in (("old", old), ("young", ~old)):
        part = {key: value[rows] for key, value in data.items()}
        value = TASK.evaluate(part).values["roc_auc"]
        assert age.levels[name].value == pytest.approx(value)
        assert age.levels[name].interval[0] < value < age.levels[name].interval[1]
    assert age.gap == pytest.approx(age.levels["young"].value - age.levels["old"].value)
    assert age.interval[0] < age.gap < age.interval[1]
    assert place.small == ("east",)  # 9 images
    assert place.p > 0.05
    assert Subgroups.from_json({**vars(age)}) == age


def test_equal_subgroups_seldom_differ_and_a_column_more_costs_power() -> None:
    same = np.zeros(173, bool)
    halves = [str(i % 2) for i in range(173)]
    p, detectable, ratio = [], [], []
    for seed in range(40):
        (one,) = found(seed, same, half=halves)
        both = found(seed, same, half=halves, third=[str(i % 3) for i in range(173)])
        assert both[0].p >= one.p
        p.append(one.p)
        detectable.append(one.detectable)
        ratio.append(both[0].detectable / one.detectable)
    assert np.mean(np.array(p) < 0.05) <= 0.15
    normal = scipy.stats.norm
    expected = (normal.isf(0.0125) + normal.ppf(0.8)) / (normal.isf(0.025) + normal.ppf(0.8))
    assert ratio == pytest.approx([expected] * 40)
    # Halves of 86 with an area of 0.92 have a standard error of 0.03 each.
    assert np.mean(detectable) == pytest.approx(2.8 * math.sqrt(2) * 0.03, rel=0.25)


def test_numbers_are_cut_at_quartiles_and_missing_ones_belong_nowhere() -> None:
    ages = [str(age) for age in range(1, 13)] + [""]
    parts = levels(ages)
    assert [*parts] == ["up to 3.75", "above 3.75", "above 6.5", "above 9.25"]
    assert [int(rows.sum()) for rows in parts.values()] == [3, 3, 3, 3]
    assert not any(rows[-1] for rows in parts.values())
    assert [*levels(["f", "m", "", "f"])] == ["f", "m"]
    assert subgroups(TASK, measured(0, np.zeros(5, bool)), {}, "roc_auc", Resampling(9, 0)) == ()
