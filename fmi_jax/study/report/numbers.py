"""The number of a setting: the cells it is made of, and how complete it is."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmi_jax.artifacts.history import FILE_NAME as HISTORY, read_history
from fmi_jax.artifacts.result import Best, Finding, Headline, Result
from fmi_jax.drawing import wording
from fmi_jax.study.planned import PlannedCell, PlannedSetting, PlannedStudy
from fmi_jax.study.report.outcomes import Outcome, Outcomes
from fmi_jax.study.state import State, best
from fmi_jax.tasks.registry import TASKS, describe

NEAR = 0.95
"""Share of the best validation score after which a training is called nearly done."""


class Status(enum.StrEnum):
    """Completeness of a number."""

    DONE = "done"
    PARTIAL = "partial"
    MISSING = "missing"
    FAILED = "failed"
    IMPOSSIBLE = "not runnable"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run (seed) behind a number.

    Attributes:
      outcome: outcome of the run's cell; the seeds of a `probe_grid` share one.
      seed: random seed; None: the protocol has no such choice.
      val: validation metric that chose its best step or setting.
      value: test metric; NaN if it is undefined.
      predictions: file with the predictions for every test image.
      steps: optimizer steps to the best validation score.
      near_steps: optimizer steps to `NEAR` of that score; None where nothing was trained, or less
        is better.
    """

    outcome: Outcome
    seed: int | None
    val: float
    value: float
    predictions: Path
    steps: int
    near_steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Number:
    """Result of a setting, as far as its cells have ended.

    Attributes:
      setting: setting that the number belongs to.
      status: completeness.
      reason: explanation if it is not complete, or if something failed on the way.
      expected: number of seeds it should have.
      runs: finished seeds; empty: there is no number.
      learning_rate: learning rate that was chosen, if there was a choice.
      rates: learning rates that were to be tried, ascending; empty if it has none.
      analysis: outcome of a finished analysis, if the setting is one.
      outcomes: outcomes of all cells that could be needed.
      followed: outcomes of the cells that these start from or analyse.
    """

    setting: PlannedSetting
    status: Status
    reason: str = ""
    expected: int = 0
    runs: tuple[Run, ...] = ()
    learning_rate: float | None = None
    rates: tuple[float, ...] = ()
    analysis: Outcome | None = None
    outcomes: tuple[Outcome, ...] = ()
    followed: tuple[Outcome, ...] = ()

    @property
    def result(self) -> Result:
        """Result of the first seed; there must be one."""
        return self.runs[0].outcome.finished

    @property
    def metric(self) -> str:
        """Name of the metric that selects and judges the setting."""
        return best_of(self.result).metric

    @property
    def label(self) -> str:
        """Name of the metric in tables."""
        return describe(self.metric, self.result.test.task).label

    @property
    def values(self) -> np.ndarray:
        """Test metric of each seed."""
        return np.array([run.value for run in self.runs])

    @property
    def mean(self) -> float:
        """Mean test metric over the seeds; NaN if there is none or it is undefined."""
        return float(self.values.mean()) if self.runs else math.nan

    @property
    def statistic(self) -> str:
        """Statistic over the seeds that is shown, that of the published number: mean or median."""
        published = self.setting.published
        return "mean" if published is None else published.statistic

    @property
    def centre(self) -> float:
        """Mean or median test metric over the seeds (`statistic`); NaN if there is none."""
        return float(np.median(self.values)) if self.statistic == "median" else self.mean

    @property
    def near_steps(self) -> float:
        """Mean optimizer steps to `NEAR` of the best validation score; NaN if not known."""
        steps = [run.near_steps for run in self.runs if run.near_steps is not None]
        return float(np.mean(steps)) if steps else math.nan

    @property
    def best_steps(self) -> float:
        """Mean optimizer steps to the best validation score; NaN if nothing was trained."""
        steps = [run.steps for run in self.runs if run.steps > 0]
        return float(np.mean(steps)) if steps else math.nan

    @property
    def val(self) -> float:
        """Mean validation metric over the seeds; NaN if there is none or it is undefined."""
        return float(np.mean([run.val for run in self.runs])) if self.runs else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds; NaN for fewer than two."""
        return float(self.values.std(ddof=1)) if len(self.runs) > 1 else math.nan

    @property
    def score(self) -> float:
        """Mean with a sign such that more is better."""
        return describe(self.metric).score(self.mean)

    @property
    def draws(self) -> bool:
        """Test whether its protocol draws anything, so that other seeds give other values."""
        return any(run.seed is not None for run in self.runs)

    @property
    def search_seed(self) -> int | None:
        """Seed that chose the learning rate and is among the runs; None without one."""
        several = len({cell.learning_rate for cell in self.setting.cells}) > 1
        return self.runs[0].seed if several and len(self.runs) > 1 else None

    @property
    def remarks(self) -> list[str]:
        """Facts about the choice of its learning rate, a few words each, for beside the number."""
        found = []
        if len(self.rates) > 1 and self.learning_rate in (self.rates[0], self.rates[-1]):
            found.append(
                f"rate {self.learning_rate:g} at an end of its grid"
                f" ({self.rates[0]:g} to {self.rates[-1]:g})"
            )
        if self.search_seed is not None:
            found.append(f"search seed {self.search_seed} is among the n")
        return found

    @property
    def difference(self) -> float:
        """Ours minus the published one, by its statistic; NaN without both in one metric."""
        published = self.setting.published
        if not self.runs or published is None or published.metric != self.metric:
            return math.nan
        return self.centre - published.mean

    @property
    def finding(self) -> Finding | None:
        """Finding of a finished analysis."""
        return None if self.analysis is None else self.analysis.analysis

    @property
    def found(self) -> Mapping[str, Any]:
        """Values that a finished analysis found; empty for anything else."""
        return {} if self.finding is None else self.finding.values

    @property
    def headline(self) -> Headline | None:
        """Headline number of a finished analysis; None if it has none."""
        return None if self.finding is None else self.finding.headline

    @property
    def summary(self) -> str:
        """Text for an analysis in a column of another metric: "CKA 0.754", or "figure"."""
        headline = self.headline
        if headline is None or headline.value is None:
            return "figure"
        return f"{headline.unit} {wording.number(headline.value)}"

    @property
    def seconds(self) -> float:
        """Wall-clock time of all finished cells."""
        return sum(outcome.total for outcome in self.outcomes)

    @property
    def used(self) -> list[Outcome]:
        """Cells that the number is made of."""
        cells = [run.outcome for run in self.runs]
        return list(dict.fromkeys(cells if self.analysis is None else [self.analysis]))


def best_of(result: Result) -> Best:
    """Checkpoint or setting that a run with test metrics chose on validation."""
    assert result.best is not None  # `Outcomes` checked it
    return result.best


def numbers_of(study: PlannedStudy, outcomes: Outcomes) -> list[Number]:
    """Compute the numbers of all settings, in order."""
    return [
        dataclasses.replace(_number(setting, outcomes), followed=_followed(setting, outcomes))
        for setting in study.settings
    ]


def _followed(setting: PlannedSetting, outcomes: Outcomes) -> tuple[Outcome, ...]:
    names = dict.fromkeys(cell.of for cell in setting.cells if cell.of is not None)
    return tuple(outcomes[name] for name in names)


def _number(setting: PlannedSetting, outcomes: Outcomes) -> Number:
    if not setting.cells:
        return Number(setting=setting, status=Status.IMPOSSIBLE, reason=setting.why_not)
    cells = setting.cells
    found = {cell.id: outcomes[cell.id] for cell in cells}
    untried: list[Outcome] = []
    parents = {cell.of: outcomes[cell.of] for cell in cells if cell.of}
    if parents and not setting.paired:  # the best run is followed
        ready = [pair for pair in parents.items() if pair[1].state is State.DONE]
        untried = [outcome for outcome in parents.values() if outcome.state is not State.DONE]
        if not ready:
            return _lacking(setting, cells, found, untried)
        parent = best((name, outcome.score) for name, outcome in ready)
        cells = [cell for cell in cells if cell.of == parent]
    first = [(cell, found[cell.id]) for cell in cells if cell.seed == cells[0].seed]
    sound = [pair for pair in first if pair[1].state is State.DONE]
    if not sound:
        return _lacking(setting, cells, found, [outcome for _, outcome in first], untried)
    rate = best((cell, outcome.score) for cell, outcome in sound).learning_rate
    same = [found[cell.id] for cell in cells if cell.learning_rate == rate]
    done = [outcome for outcome in same if outcome.state is State.DONE]
    undone = [outcome for outcome in same if outcome.state is not State.DONE]
    untried += [outcome for _, outcome in first if outcome.state is not State.DONE]
    unsettled = [outcome for outcome in untried if outcome.state is not State.FAILED]
    reasons = (_reasons(undone, "seed"), _reasons(untried, "learning rate"))
    common: dict[str, Any] = {
        "setting": setting, "status": Status.PARTIAL if undone or unsettled else Status.DONE,
        "outcomes": tuple(found.values()), "reason": "; ".join(filter(None, reasons)),
    }  # fmt: skip
    if done[0].analysis is not None:
        return Number(**common, expected=1, analysis=done[0], learning_rate=rate)
    runs = tuple(run for outcome in done for run in _runs(outcome))
    grid = done[0].finished.finding.values
    rates = {cell.learning_rate for cell in cells if cell.learning_rate is not None}
    if "heads" in grid:
        rate = grid["chosen"]["learning_rate"]
        rates = {head["learning_rate"] for head in grid["heads"]}
    return Number(
        **common,
        expected=max(len(same), len(runs)),
        runs=runs,
        learning_rate=rate,
        rates=tuple(sorted(rates)),
    )


def _runs(outcome: Outcome) -> list[Run]:
    """List the seeds of a finished cell: one, or those of the chosen rate of a grid of heads."""
    result = outcome.finished
    details, best = result.finding.values, best_of(result)
    if "heads" not in details:
        return [
            Run(
                outcome=outcome,
                seed=result.seed if result.steps else None,
                val=best.value,
                value=result.test.values[best.metric],
                predictions=outcome.folder / TASKS[result.test.task].file,
                steps=best.step,
                near_steps=_near(outcome, f"val/{best.metric}", best.metric),
            )
        ]
    files: Mapping[str, str] = details["seeds"]["predictions"]
    return [
        Run(
            outcome=outcome,
            seed=head["seed"],
            val=math.nan if (val := head["val"][best.metric]) is None else val,
            value=math.nan if (value := head["test"][best.metric]) is None else value,
            predictions=outcome.folder / files[str(head["seed"])],
            steps=head["best_step"],
            near_steps=_near(
                outcome,
                f"lr{head['learning_rate']}_seed{head['seed']}/val/{best.metric}",
                best.metric,
            ),
        )
        for head in details["heads"]
        if head["learning_rate"] == details["chosen"]["learning_rate"]
    ]


def _near(outcome: Outcome, scalar: str, metric: str) -> int | None:
    """Find the first validation with `NEAR` of the best score of a run; None if not known."""
    history = read_history(outcome.folder / HISTORY)
    if scalar not in history or not describe(metric).higher_is_better:
        return None
    steps, values = history[scalar]
    best = values.max()
    return int(steps[np.argmax(values >= NEAR * best)]) if best > 0 else None


def _lacking(
    setting: PlannedSetting,
    cells: Sequence[PlannedCell],
    found: Mapping[str, Outcome],
    tried: Sequence[Outcome],
    untried: Sequence[Outcome] = (),
) -> Number:
    """Make the number of a setting that has no value, because none of `tried` is done."""
    unit = "learning rate" if len(tried) > 1 else "cell"
    reasons = (_reasons(tried, unit), _reasons(untried, "learning rate"))
    failed = any(outcome.state is State.FAILED for outcome in tried)
    return Number(
        setting=setting,
        status=Status.FAILED if failed else Status.MISSING,
        reason="; ".join(filter(None, reasons)),
        expected=sum(cell.learning_rate == cells[0].learning_rate for cell in cells),
        outcomes=tuple(found.values()),
    )


def _reasons(outcomes: Sequence[Outcome], unit: str) -> str:
    """Say why outcomes are missing: each reason once, with how many `unit`s it applies to."""
    words = {
        State.FAILED: "failed: {}",
        State.DAMAGED: "damaged: {}",
        State.BEGUN: "not finished",
        State.OPEN: "not run",
    }
    texts = [words[o.state].format(o.reason) for o in outcomes if o.state in words]
    return "; ".join(
        f"{wording.count(texts.count(text), unit)} {text}" for text in dict.fromkeys(texts)
    )
