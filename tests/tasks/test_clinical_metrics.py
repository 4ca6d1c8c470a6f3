"""Decisions from the probabilities of `golden/clinical_metrics`, beyond what the case holds.

Its own values are compared by `test_parity`.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from tolerances import METRIC

from fmi_jax.tasks import operating

GOLDEN = Path(__file__).parent.parent / "golden" / "clinical_metrics" / "io.npz"


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {name: file[f"binary/{name}"] for name in ("probabilities", "labels")}


def test_predictive_values_are_those_of_the_counts_and_of_another_prevalence(case) -> None:
    called, truth = case["probabilities"] >= 0.5, case["labels"] == 1
    sensitivity, specificity = called[truth].mean(), (~called)[~truth].mean()
    found = operating.predictive_values(sensitivity, specificity, truth.mean())
    assert found == pytest.approx((truth[called].mean(), (~truth)[~called].mean()), abs=METRIC)
    assert operating.predictive_values(0.9, 0.9, 0.01)[0] == pytest.approx(0.009 / 0.108)
    assert math.isnan(operating.predictive_values(0.0, 1.0, 0.5)[0])


def test_the_cheapest_point_follows_the_cost_of_a_miss(case) -> None:
    p, truth = case["probabilities"], case["labels"] == 1
    curve = operating.roc(p, truth)
    for miss in (0.1, 1.0, 10.0):
        cost = [miss * (truth & (p < t)).sum() + (~truth & (p >= t)).sum() for t in curve.threshold]
        point = operating.cheapest(curve, miss)
        assert curve.threshold[int(np.argmin(cost))] == point.threshold
