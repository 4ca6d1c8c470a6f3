"""Clinical metrics against the values of other packages in `golden/clinical_metrics`."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from tolerances import METRIC

from fmi_jax.tasks import calibration, operating
from fmi_jax.tasks.classification import Multiclass
from fmi_jax.tasks.intervals import DELONG, Z, delong, delong_p, scaled, wilson

GOLDEN = Path(__file__).parent.parent / "golden" / "clinical_metrics" / "io.npz"
BINNINGS = {
    "equal_width": calibration.equal_width,
    "equal_mass_split": calibration.equal_counts,
    "equal_mass_quantile": calibration.quantiles,
}
QUANTILE = 1e-6  # of the normal distribution, which the reference rounds to 1.959964


def cases(prefix: str) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN) as file:
        for key in file.files:
            name, _, rest = key.partition("/")
            if name.startswith(prefix):
                found.setdefault(name, {})[rest.removeprefix("expected/")] = file[key]
    return found


BINARY, SEVERAL = cases("binary"), cases("multiclass")


def check(case: dict[str, np.ndarray], found: dict[str, object]) -> None:
    """Compare values by name; NaN equals NaN."""
    for name, value in found.items():
        np.testing.assert_allclose(
            np.asarray(value, float), case[name], rtol=1e-9, atol=METRIC, err_msg=name
        )


def errors(p: np.ndarray, truth: np.ndarray, kind: str) -> dict[str, float]:
    found = {}
    for name, binning in BINNINGS.items():
        expected, largest = calibration.calibration_error(p, truth, binning)
        found |= {f"ece15_{kind}_{name}": expected, f"mce15_{kind}_{name}": largest}
    return found


@pytest.mark.parametrize("name", BINARY)
def test_calibration_of_two_classes(name: str) -> None:
    case = BINARY[name]
    p, truth = case["probabilities"], case["labels"] == 1
    top, right = np.where(p >= 0.5, p, 1 - p), (p >= 0.5) == truth
    check(
        case,
        {
            "brier": calibration.brier(p, truth),
            "log_loss": calibration.log_loss(p, truth),
            **errors(p, truth, "positive"),
            **errors(top, right, "toplabel"),
        },
    )


@pytest.mark.parametrize("name", SEVERAL)
def test_calibration_and_temperature_of_several_classes(name: str) -> None:
    case = SEVERAL[name]
    logits, labels = case["logits"].astype(np.float64), case["labels"]
    task = Multiclass(tuple(map(str, range(logits.shape[1]))))
    found = calibration.temperature(logits, labels)
    assert found == pytest.approx(float(case["temperature"]), rel=1e-7)
    for suffix, scale in (("", 1.0), ("_scaled", float(case["temperature"]))):
        p = task.probabilities(logits / scale)
        truth = np.eye(p.shape[1])[labels]
        classwise = [
            calibration.calibration_error(p[:, c], truth[:, c])[0] for c in range(len(p.T))
        ]
        values = {
            "nll": -np.log(p[np.arange(len(p)), labels]).mean(),
            "brier": calibration.brier(p, truth),
            "ece15_classwise_equal_width": np.mean(classwise),
            **errors(p.max(axis=1), p.argmax(axis=1) == labels, "toplabel"),
        }
        check(case, {name + suffix: value for name, value in values.items()})


@pytest.mark.parametrize("name", BINARY)
def test_operating_points(name: str) -> None:
    case = BINARY[name]
    p, truth = case["probabilities"], case["labels"] == 1
    curve = operating.roc(p, truth)
    best = operating.youden(curve)
    found: dict[str, object] = {
        "youden_index": best.sensitivity + best.specificity - 1,
        "youden_threshold": best.threshold,
    }
    for level in (0.8, 0.9, 0.95):
        specific = operating.at_specificity(curve, level)
        sensitive = operating.at_sensitivity(curve, level)
        found |= {
            f"sensitivity_at_specificity_{level}": specific.sensitivity,
            f"threshold_at_specificity_{level}": specific.threshold,
            f"sensitivity_at_specificity_{level}_interpolated": operating.interpolated(
                curve, level
            ),
            f"specificity_at_sensitivity_{level}": sensitive.specificity,
            f"threshold_at_sensitivity_{level}": sensitive.threshold,
        }
    thresholds = case["decision_thresholds"]
    found |= {
        "net_benefit": operating.net_benefit(p, truth, thresholds),
        "net_benefit_treat_all": operating.net_benefit(np.ones(len(p)), truth, thresholds),
    }
    check(case, {key: value for key, value in found.items() if key in case})
    if curve is None:
        assert math.isnan(best.threshold)
        assert name == "binary_one_class"


def test_predictive_values_are_those_of_the_counts_and_of_another_prevalence() -> None:
    case = BINARY["binary"]
    called, truth = case["probabilities"] >= 0.5, case["labels"] == 1
    sensitivity, specificity = called[truth].mean(), (~called)[~truth].mean()
    found = operating.predictive_values(sensitivity, specificity, truth.mean())
    assert found == pytest.approx((truth[called].mean(), (~truth)[~called].mean()), abs=METRIC)
    assert operating.predictive_values(0.9, 0.9, 0.01)[0] == pytest.approx(0.009 / 0.108)
    assert math.isnan(operating.predictive_values(0.0, 1.0, 0.5)[0])


def test_the_cheapest_point_follows_the_cost_of_a_miss() -> None:
    case = BINARY["binary"]
    p, truth = case["probabilities"], case["labels"] == 1
    curve = operating.roc(p, truth)
    for miss in (0.1, 1.0, 10.0):
        cost = [miss * (truth & (p < t)).sum() + (~truth & (p >= t)).sum() for t in curve.threshold]
        point = operating.cheapest(curve, miss)
        assert curve.threshold[int(np.argmin(cost))] == point.threshold


@pytest.mark.parametrize("name", BINARY)
def test_auroc_and_its_variance(name: str) -> None:
    case = BINARY[name]
    p, truth = case["probabilities"], case["labels"] == 1
    area, covariance = delong(p[None], truth)
    check(case, {"auroc": area[0], "delong_variance": covariance[0, 0]})
    if "delong_ci95" in case:
        half = Z * math.sqrt(covariance[0, 0])
        assert case["delong_ci95"] == pytest.approx((area[0] - half, area[0] + half), abs=QUANTILE)
    if "delong_ci95_logit" in case:
        found = scaled(area[0], math.sqrt(covariance[0, 0]), (0.0, 1.0), DELONG)
        assert case["delong_ci95_logit"] == pytest.approx((found.low, found.high), abs=QUANTILE)


@pytest.mark.parametrize("name", [name for name, case in BINARY.items() if "pair_p" in case])
def test_two_aurocs_of_the_same_images(name: str) -> None:
    case = BINARY[name]
    scores = np.stack([case["probabilities"], case["probabilities_b"]])
    area, covariance = delong(scores, case["labels"] == 1)
    check(
        case,
        {
            "pair_auroc": area,
            "pair_covariance": covariance,
            "pair_p": delong_p(scores, case["labels"] == 1),
        },
    )


@pytest.mark.parametrize("name", BINARY)
def test_intervals_of_proportions(name: str) -> None:
    case = BINARY[name]
    called, truth = case["probabilities"] >= 0.5, case["labels"] == 1
    for metric, hit, counted in (
        ("sensitivity", called, truth),
        ("specificity", ~called, ~truth),
    ):
        hits, count = int(hit[counted].sum()), int(counted.sum())
        found = wilson(hits / count if count else math.nan, count)
        expected = case[f"{metric}_at_0.5_ci95_wilson"]
        np.testing.assert_allclose((found.low, found.high), expected, atol=QUANTILE)
        if count:
            exact = scipy.stats.binomtest(hits, count).proportion_ci(method="exact")
            np.testing.assert_allclose(exact, case[f"{metric}_at_0.5_ci95_exact"], atol=QUANTILE)
