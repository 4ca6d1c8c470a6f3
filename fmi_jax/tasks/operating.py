"""Operating points: thresholds that turn probabilities into decisions.

A case is positive if its score is at or above the threshold. Thresholds are the distinct scores,
and infinity, at which nobody is positive.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fmi_jax.artifacts.evaluation import Decision
from fmi_jax.tasks.intervals import proportion

RULES = ("youden", "sensitivity", "specificity", "cost")


class Rule(NamedTuple):
    """Choice of a threshold.

    Attributes:
      name: one of `RULES`.
      target: least sensitivity or specificity, for these two.
      miss: cost of a missed positive in false alarms, for "cost".
      prevalence: share of positives that predictive values are stated for as well; 0: none.
    """

    name: str = "youden"
    target: float = 0.9
    miss: float = 1.0
    prevalence: float = 0.0

    def choose(self, probabilities: np.ndarray, truth: np.ndarray) -> float:
        """Choose a threshold; NaN without a positive and a negative."""
        curve = roc(probabilities, truth)
        if self.name == "youden":
            return youden(curve).threshold
        if self.name == "cost":
            return cheapest(curve, self.miss).threshold
        at = at_sensitivity if self.name == "sensitivity" else at_specificity
        return at(curve, self.target).threshold


class Point(NamedTuple):
    """A threshold, and what it gives on the images it was chosen on.

    Attributes:
      threshold: lowest positive score; infinity: nobody is positive.
      sensitivity: share of the positives at or above it.
      specificity: share of the negatives below it.
    """

    threshold: float
    sensitivity: float
    specificity: float


NOWHERE = Point(math.nan, math.nan, math.nan)
"""Point of a class without positives or without negatives."""


class Roc(NamedTuple):
    """Every operating point, from the highest threshold on.

    Attributes:
      threshold, sensitivity, specificity: values of each `Point`, `[t]`.
      prevalence: share of positives.
    """

    threshold: Float[np.ndarray, "t"]
    sensitivity: Float[np.ndarray, "t"]
    specificity: Float[np.ndarray, "t"]
    prevalence: float

    def point(self, index: int) -> Point:
        """Point at an index."""
        return Point(*(float(part[index]) for part in self[:3]))


def roc(scores: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"]) -> Roc | None:
    """Find every operating point; None without a positive and a negative."""
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    last = np.r_[ranked[1:] != ranked[:-1], True]
    found, alarms = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    return Roc(
        np.r_[math.inf, ranked[last]],
        np.r_[0, found] / truth.sum(),
        1 - np.r_[0, alarms] / (~truth).sum(),
        float(truth.mean()),
    )


def at_specificity(curve: Roc | None, least: float) -> Point:
    """Point of the largest sensitivity with at least this specificity, at the highest threshold."""
    if curve is None:
        return NOWHERE
    allowed = np.flatnonzero(curve.specificity >= least)  # infinity is among them
    return curve.point(int(allowed[curve.sensitivity[allowed].argmax()]))


def at_sensitivity(curve: Roc | None, least: float) -> Point:
    """Point of the largest specificity with at least this sensitivity, at the highest threshold."""
    if curve is None:
        return NOWHERE
    return curve.point(int((curve.sensitivity >= least).argmax()))


def youden(curve: Roc | None) -> Point:
    """Point of the largest sensitivity + specificity, at the highest threshold."""
    if curve is None:
        return NOWHERE
    # Rounded, so that equal ones are equal whatever the order of the sum.
    return curve.point(int(np.round(curve.sensitivity + curve.specificity, 12).argmax()))


def cheapest(curve: Roc | None, miss: float) -> Point:
    """Point of the least cost, where a missed positive costs `miss` false alarms."""
    if curve is None:
        return NOWHERE
    missed = miss * curve.prevalence * (1 - curve.sensitivity)
    alarms = (1 - curve.prevalence) * (1 - curve.specificity)
    return curve.point(int(np.round(missed + alarms, 12).argmin()))


def interpolated(curve: Roc | None, specificity: float) -> float:
    """Sensitivity at a specificity, on straight lines between the best points of each specificity.

    Unlike `at_specificity` it may be a value that no threshold reaches.
    """
    if curve is None:
        return math.nan
    best = np.r_[curve.specificity[1:] != curve.specificity[:-1], True]
    alarms = 1 - curve.specificity[best]
    return float(np.interp(1 - specificity, alarms, curve.sensitivity[best]))


def net_benefit(
    probabilities: Float[np.ndarray, "n"],
    truth: Bool[np.ndarray, "n"],
    thresholds: Float[np.ndarray, "t"],
) -> Float[np.ndarray, "t"]:
    """Net benefit of treating from each threshold probability on (Vickers and Elkin 2006).

    That of treating all has `probabilities` of 1; that of treating none is 0.
    """
    treated = probabilities >= np.asarray(thresholds)[:, None]
    odds = thresholds / (1 - thresholds)
    return (treated & truth).mean(axis=1) - (treated & ~truth).mean(axis=1) * odds


def predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float, float]:
    """Positive and negative predictive value at a prevalence (Bayes' rule); NaN if undefined."""
    found, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    cleared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    return (
        found / (found + alarms) if found + alarms else math.nan,
        cleared / (cleared + missed) if cleared + missed else math.nan,
    )


def decide(
    probabilities: Float[np.ndarray, "n"],
    truth: Bool[np.ndarray, "n"],
    member: Int[np.ndarray, "n"],
    threshold: float,
    prevalence: float,
) -> Decision:
    """Measure the decisions at a threshold, with Wilson's intervals.

    Args:
      probabilities: probability of the class.
      truth: images that have it.
      member: each image's group.
      threshold: lowest probability that is called positive.
      prevalence: share of positives that predictive values are stated for as well; 0: none.
    """
    called = probabilities >= threshold
    parts = {
        "sensitivity": (called, truth),
        "specificity": (~called, ~truth),
        "ppv": (truth, called),
        "npv": (~truth, ~called),
    }
    values = {
        name: float(hit[counted].mean()) if counted.any() else math.nan
        for name, (hit, counted) in parts.items()
    }
    bounds = {name: proportion(hit, counted, member) for name, (hit, counted) in parts.items()}
    ppv, npv = math.nan, math.nan
    if prevalence:
        ppv, npv = predictive_values(values["sensitivity"], values["specificity"], prevalence)
    return Decision(
        threshold=threshold,
        values=values,
        intervals={name: (one.low, one.high) for name, one in bounds.items() if one.defined},
        prevalence=prevalence or math.nan,
        ppv=ppv,
        npv=npv,
    )
