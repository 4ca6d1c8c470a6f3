"""Clinical metrics from the inputs of one set of a case, by the names of the case."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from fmi_jax.tasks import calibration, operating
from fmi_jax.tasks.classification import Multiclass
from fmi_jax.tasks.intervals import DELONG, Z, delong, delong_p, scaled, wilson

_Arrays = Mapping[str, np.ndarray]
_THRESHOLDS = np.arange(1, 20) / 20
_LEVELS = (0.8, 0.9, 0.95)
_BINNINGS = {
    "equal_width": calibration.equal_width,
    "equal_mass_split": calibration.equal_counts,
    "equal_mass_quantile": calibration.quantiles,
}


def clinical_metrics(config: Mapping[str, Any], inputs: _Arrays) -> dict[str, Any]:
    """Compute every value of a set; those of two classes, or of several."""
    found = _several(inputs) if config["kind"] == "multiclass" else _binary(inputs)
    return {f"expected/{name}": value for name, value in found.items()}


def _errors(p: np.ndarray, truth: np.ndarray, kind: str, suffix: str = "") -> dict[str, float]:
    found = {}
    for name, binning in _BINNINGS.items():
        mean, largest = calibration.calibration_error(p, truth, binning)
        found[f"ece15_{kind}_{name}{suffix}"] = mean
        found[f"mce15_{kind}_{name}{suffix}"] = largest
    return found


def _binary(inputs: _Arrays) -> dict[str, Any]:
    p, truth = inputs["probabilities"], inputs["labels"] == 1
    top, right = np.where(p >= 0.5, p, 1 - p), (p >= 0.5) == truth
    return {
        "brier": calibration.brier(p, truth),
        "log_loss": calibration.log_loss(p, truth),
        **_errors(p, truth, "positive"),
        **_errors(top, right, "toplabel"),
        "decision_thresholds": _THRESHOLDS,
        "net_benefit": operating.net_benefit(p, truth, _THRESHOLDS),
        "net_benefit_treat_all": operating.net_benefit(np.ones(len(p)), truth, _THRESHOLDS),
        "net_benefit_treat_none": operating.net_benefit(np.zeros(len(p)), truth, _THRESHOLDS),
        **_at_one_half(p, truth),
        **_points(p, truth),
        **_areas(inputs, truth),
    }


def _at_one_half(p: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hit, counted in (("sensitivity", p >= 0.5, truth), ("specificity", p < 0.5, ~truth)):
        hits, count = int(hit[counted].sum()), int(counted.sum())
        share = hits / count if count else math.nan
        exact = (math.nan, math.nan)
        if count:
            exact = tuple(scipy.stats.binomtest(hits, count).proportion_ci(method="exact"))
        interval = wilson(share, count)
        found |= {
            f"{name}_at_0.5": share,
            f"{name}_at_0.5_ci95_wilson": (interval.low, interval.high),
            f"{name}_at_0.5_ci95_exact": exact,
        }
    return found


def _points(p: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    curve = operating.roc(p, truth)
    best = operating.youden(curve)
    found = {
        "youden_index": best.sensitivity + best.specificity - 1,
        "youden_threshold": best.threshold,
        "youden_sensitivity": best.sensitivity,
        "youden_specificity": best.specificity,
    }
    for level in _LEVELS:
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
    return found


def _areas(inputs: _Arrays, truth: np.ndarray) -> dict[str, Any]:
    (area,), covariance = delong(inputs["probabilities"][None], truth)
    deviation = math.sqrt(covariance[0, 0])
    logit = scaled(area, deviation, (0.0, 1.0), DELONG)
    ends = (logit.low, logit.high) if deviation else (area, area)
    found: dict[str, Any] = {
        "auroc": area,
        "delong_variance": covariance[0, 0],
        "delong_ci95": (area - Z * deviation, area + Z * deviation),
        "delong_ci95_logit": ends,
    }
    if "probabilities_b" in inputs:
        scores = np.stack([inputs["probabilities"], inputs["probabilities_b"]])
        areas, covariance = delong(scores, truth)
        difference = areas[0] - areas[1]
        spread = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        found |= {
            "pair_auroc": areas,
            "pair_covariance": covariance,
            "pair_difference": difference,
            "pair_z": difference / spread,
            "pair_p": delong_p(scores, truth),
            "pair_difference_ci95": (difference - Z * spread, difference + Z * spread),
        }
    return found


def _several(inputs: _Arrays) -> dict[str, Any]:
    logits, labels = inputs["logits"].astype(np.float64), inputs["labels"]
    task = Multiclass(tuple(map(str, range(logits.shape[1]))))
    temperature = calibration.temperature(logits, labels)
    found: dict[str, Any] = {
        "accuracy": (logits.argmax(axis=1) == labels).mean(),
        "temperature": temperature,
    }
    truth = np.eye(logits.shape[1])[labels]
    for suffix, scale in (("", 1.0), ("_scaled", temperature)):
        p = task.probabilities(logits / scale)
        each = [calibration.calibration_error(p[:, c], truth[:, c])[0] for c in range(p.shape[1])]
        found |= {
            f"nll{suffix}": -np.log(p[np.arange(len(p)), labels]).mean(),
            f"brier{suffix}": calibration.brier(p, truth),
            f"ece15_classwise_equal_width{suffix}": np.mean(each),
            **_errors(p.max(axis=1), p.argmax(axis=1) == labels, "toplabel", suffix),
        }
    return found
