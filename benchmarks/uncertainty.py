"""Simulations of what the pages state: intervals, p-values, the best of several rows, calibration.

    python benchmarks/uncertainty.py          # the tables of docs/statistics.md
    python benchmarks/uncertainty.py --quick  # the same tables from a few simulations

Every table is Markdown. No images or networks are read: logits and labels are drawn, and the true
metric is that of a very large sample. The functions are the program's own.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.stats

from fmi_jax.study.report.statistics import paired_p, reliability, two_level
from fmi_jax.tasks.base import Measured, Resampling, Task, members
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.intervals import BOOTSTRAP, scaled
from fmi_jax.tasks.weighted import draw_times, interval, resample

GRADES = (0.49, 0.10, 0.27, 0.05, 0.09)
"""Shares of the five grades, like those of APTOS2019."""

FINDINGS = (83, 109, 126, 1, 45, 33, 8, 80, 32, 8, 67, 1, 0, 38)
"""Positives among 234 images, like those of CheXpert's validation list."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """A metric of drawn images.

    Attributes:
      title: row of the table.
      task: task of the images.
      metric: metric's name, that of a class by "recall[1]".
      count: number of images.
      skill: strength of the signal in the logits.
      shares: probability of each class.
      grouped: images per patient, who share a part of the noise; 1: none do.
    """

    title: str
    task: Task
    metric: str
    count: int
    skill: float
    shares: tuple[float, ...]
    grouped: int = 1

    def draw(self, rng: np.random.Generator, count: int) -> Measured:
        """Draw logits and labels of `count` images."""
        k, patients = len(self.shares), -(-count // self.grouped)
        member = np.arange(count) // self.grouped
        labels = rng.choice(k, size=patients, p=self.shares)[member]
        far = np.abs(np.arange(k) - labels[:, None])
        noise = rng.normal(size=(count, k))
        if self.grouped > 1:
            noise = (noise + 2 * rng.normal(size=(patients, k))[member]) / math.sqrt(5)
        return {"logits": self.skill * np.exp(-far.astype(float)) + noise, "labels": labels}

    def value(self, measured: Measured) -> float:
        """Compute the metric, each image counted once."""
        return self.task.evaluate(measured).named()[self.metric]

    def groups(self) -> list[str] | None:
        """Patient of each image."""
        return None if self.grouped == 1 else [str(i // self.grouped) for i in range(self.count)]


def scenarios() -> Iterator[Scenario]:
    """List the rows of the table of coverage."""
    five, two = Multiclass(tuple("01234")), Binary(("0", "1"))
    for title, metric, counts in (
        ("quadratic kappa", "quadratic_kappa", (90, 549)),
        ("macro recall", "recall", (90, 300)),
        ("macro F1", "f1", (90, 300)),
        ("AUROC, one-vs-one", "roc_auc", (90,)),
        ("accuracy", "accuracy", (90,)),
        ("cross-entropy", "loss", (90,)),
    ):
        for count in counts:
            yield Scenario(
                title=title, task=five, metric=metric, count=count, skill=2.5, shares=GRADES
            )
    for title, metric in (
        ("AUROC", "roc_auc"),
        ("average precision", "average_precision"),
        ("recall of the rarer class", "recall[1]"),
        ("F1 of the rarer class", "f1[1]"),
    ):
        for skill in (2.0, 4.5):
            level = "near 1" if skill > 4 else "middling"
            yield Scenario(
                title=f"{title}, {level}",
                task=two,
                metric=metric,
                count=60,
                skill=skill,
                shares=(0.7, 0.3),
            )
    for title, task, metric, shares in (
        ("AUROC, 30 patients of 4", two, "roc_auc", (0.6, 0.4)),
        ("accuracy, 30 patients of 4", two, "accuracy", (0.6, 0.4)),
        ("quadratic kappa, 30 patients of 4", five, "quadratic_kappa", (0.2,) * 5),
    ):
        yield Scenario(
            title=title, task=task, metric=metric, count=120, skill=2.5, shares=shares, grouped=4
        )


def bca(value: float, resampled: np.ndarray, without: np.ndarray) -> tuple[float, float]:
    """BCa interval (Efron 1987).

    Args:
      value: metric.
      resampled: metric on each resample.
      without: metric without each of the groups.
    """
    defined = without[~np.isnan(without)]
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    away = defined.mean() - defined
    if not 0 < below < 1 or not away.any():
        return math.nan, math.nan
    skew = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    shift, ends = scipy.stats.norm.ppf(below), scipy.stats.norm.ppf((0.025, 0.975))
    shares = scipy.stats.norm.cdf(shift + (shift + ends) / (1 - skew * (shift + ends)))
    low, high = np.percentile(resampled, 100 * shares)
    return float(low), float(high)


def weighed(task: Task, name: str, measured: Measured, member: np.ndarray, times: np.ndarray):
    """Compute one metric under each weighting of the groups."""
    if name in task.metric_names:
        return task.resampled(measured, name, member, times)
    return task.all_values(measured, times[:, member])[name]


def candidates(
    scenario: Scenario, measured: Measured, resamples: int, seed: int
) -> dict[str, tuple]:
    """Compute the interval of each method, by its name."""
    task, name = scenario.task, scenario.metric
    measured = task.checked(measured)
    member = members(scenario.groups(), scenario.count)
    groups, value = int(member.max()) + 1, scenario.value(measured)
    blocks = resample(task.kinds(measured), member, resamples, seed)
    drawn = np.concatenate([weighed(task, name, measured, member, times) for times, _ in blocks])
    without = weighed(task, name, measured, member, 1 - np.eye(groups))
    ends = scaled(value, float(drawn.std()), _bounds(task, name))
    exact = task.exact(measured, member).get(name)
    return {
        "percentile": interval(drawn),
        "BCa": bca(value, drawn, without),
        BOOTSTRAP: (ends.low, ends.high),
        **({} if exact is None else {"without a bootstrap": (exact.low, exact.high)}),
    }


def _bounds(task: Task, name: str) -> tuple[float, float]:
    metric = task.find_metric(name)
    return (0.0, 1.0) if metric is None else metric.bounds


def coverage(simulations: int, resamples: int, size: int = 200_000) -> Iterator[str]:
    """Share of intervals that hold the true value, and of samples that have one."""
    names = ("percentile", "BCa", BOOTSTRAP, "without a bootstrap")
    yield f"| metric | images | true value | {' | '.join(names)} |"
    yield "| --- |" + " --- |" * (2 + len(names))
    for scenario in scenarios():
        rng = np.random.default_rng(0)
        truth = scenario.value(scenario.draw(np.random.default_rng(1), size))
        held: dict[str, list[float]] = {name: [] for name in names}
        asked = 0
        for seed in range(simulations):
            measured = scenario.draw(rng, scenario.count)
            if math.isnan(scenario.value(measured)):
                continue
            asked += 1
            for name, (low, high) in candidates(scenario, measured, resamples, seed).items():
                if not math.isnan(low):
                    held[name].append(low <= truth <= high)
        cells = [_share(found, asked) for found in held.values()]
        yield f"| {scenario.title} | {scenario.count} | {truth:.3f} | {' | '.join(cells)} |"


def _share(held: Sequence[float], asked: int) -> str:
    if not held:
        return ""
    given = len(held) / asked
    return f"{np.mean(held):.3f}" + (f" (of {given:.0%})" if given < 0.9995 else "")


def class_set(resamples: int) -> Iterator[str]:
    """Macro AUROC where two findings have one positive: old and new rule."""
    n, k = 234, len(FINDINGS)
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(n, k)), np.zeros((n, k), int)
    for c, positives in enumerate(FINDINGS):
        labels[rng.choice(n, positives, replace=False), c] = 1
    logits += 1.4 * labels
    for c in np.flatnonzero(np.array(FINDINGS) == 1):  # the single positive ranks last
        logits[labels[:, c] == 1, c] = logits[:, c].min() - 1
    task = Multilabel(tuple(map(str, range(k))))
    measured = task.checked({"logits": logits, "labels": labels})
    areas = np.concatenate(
        [
            np.stack([task.all_values(measured, times)[f"roc_auc[{c}]"] for c in range(k)], axis=1)
            for times in draw_times(n, resamples, 0, size=n)
        ]
    )
    sets, counts = np.unique((~np.isnan(areas)).sum(axis=1), return_counts=True)
    loose = np.nanmean(areas, axis=1)
    fixed = task.bootstrap(measured, Resampling(resamples, 0))
    value = task.evaluate(measured).values["roc_auc"]
    usual = np.nanmean(areas[:, np.array(FINDINGS) >= 8])
    yield f"Macro AUROC of the 13 findings with positives {value:.3f}, of those with 8 or more"
    yield f"{usual:.3f}."
    yield ""
    yield "| class set | resamples by number of classes | mean | 95 % percentile interval |"
    yield "| --- | --- | --- | --- |"
    shares = ", ".join(f"{size}: {count}" for size, count in zip(sets, counts, strict=True))
    low, high = interval(loose)
    yield f"| that of each resample | {shares} | {loose.mean():.3f} | {low:.3f} to {high:.3f} |"
    low, high = interval(fixed.values["roc_auc"])
    mean = fixed.values["roc_auc"].mean()
    shares = f"13: {resamples} ({fixed.redrawn} redrawn)"
    yield f"| that of the data | {shares} | {mean:.3f} | {low:.3f} to {high:.3f} |"


def false_differences(simulations: int, resamples: int) -> Iterator[str]:
    """Share of pairs of equal models that are declared different at 0.05."""
    n, seeds = 549, (1, 2, 3, 5)
    yield f"| standard deviation between seeds | {' | '.join(f'{s} seeds' for s in seeds)} |"
    yield "| --- |" + " --- |" * len(seeds)
    density = scipy.stats.norm.pdf(scipy.stats.norm.ppf(0.8))
    times = np.concatenate([*draw_times(n, resamples, 0)]) / n
    for deviation in (0.0, 0.006, 0.014, 0.025, 0.07):
        cells = []
        for count in seeds:
            rng, found = np.random.default_rng(5), []
            for simulation in range(simulations):
                hard = rng.normal(size=n)
                offset = rng.normal(size=(2, count, 1)) * deviation / density
                noise = (hard + rng.normal(size=(2, count, n))) / math.sqrt(2)
                right = (noise < scipy.stats.norm.ppf(0.8) + offset).astype(float)
                # The seeds of both models are drawn apart, the images together.
                means = [
                    two_level(one @ times.T, 2 * simulation + i) for i, one in enumerate(right)
                ]
                observed = float(right[0].mean() - right[1].mean())
                found.append(paired_p(observed, means[0] - means[1]) < 0.05)
            cells.append(f"{np.mean(found):.2f}")
        yield f"| {deviation:g} | {' | '.join(cells)} |"


def optimism(simulations: int) -> Iterator[str]:
    """Best test score of equal rows above their true value, in standard errors of one row."""
    rng, rows = np.random.default_rng(7), (2, 4, 8, 13, 24)
    yield f"| equal rows | {' | '.join(map(str, rows))} |"
    yield "| --- |" + " --- |" * len(rows)
    for shared in (0.0, 0.5, 0.8):
        cells = []
        for count in rows:
            own = rng.normal(size=(simulations, count)).max(axis=1) * math.sqrt(1 - shared)
            cells.append(f"{own.mean():.2f}")
        yield f"| correlation {shared:g} between the rows' scores | {' | '.join(cells)} |"


def calibrated_ece(simulations: int) -> Iterator[str]:
    """Calibration error that a perfectly calibrated model shows."""
    rng = np.random.default_rng(9)
    yield "| images | 10 bins of equal counts |"
    yield "| --- | --- |"
    for count in (30, 90, 549, 2533):
        found = []
        for _ in range(simulations):
            p = scipy.special.expit(rng.normal(0, 1.5, size=count))
            found.append(reliability(p, rng.random(count) < p).ece)
        yield f"| {count} | {np.mean(found):.3f} |"


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few simulations, to try it out")
    quick = parser.parse_args().quick
    simulations, resamples = (5, 50) if quick else (400, 600)
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "Coverage of 95 % intervals": lambda: coverage(simulations, resamples),
        "Class set of a macro average": lambda: class_set(2 * resamples),
        "Equal models declared different": lambda: false_differences(simulations, resamples),
        "Optimism of the best row": lambda: optimism(200 * simulations),
        "Calibration error of a calibrated model": lambda: calibrated_ece(simulations),
    }
    for title, table in tables.items():
        begun = time.perf_counter()
        print(f"## {title}\n")
        for line in table():
            print(line, flush=True)
        print(f"\n{time.perf_counter() - begun:.0f} s.\n", flush=True)


if __name__ == "__main__":
    main()
