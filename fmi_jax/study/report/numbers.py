"""The number of a setting: which of its cells it is made of, and how complete it is."""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmi_jax.artifacts.predictions import FILE_NAME as PREDICTIONS
from fmi_jax.artifacts.result import Headline, Result, Speed
from fmi_jax.study.report import wording
from fmi_jax.study.report.outcomes import Outcome, Outcomes, State
from fmi_jax.study.report.planned import PlannedCell, PlannedSetting, PlannedStudy
from fmi_jax.tasks.metrics import describe, selection_score


class Status(enum.StrEnum):
    """How complete a number is."""

    DONE = "done"
    PARTIAL = "partial"
    MISSING = "missing"
    FAILED = "failed"
    IMPOSSIBLE = "not runnable"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One seed behind a number.

    Attributes:
      outcome: the cell it is of; the seeds of a `probe_grid` share one.
      seed: which; None: the protocol has no such choice.
      value: the test metric; NaN where it is undefined.
      predictions: what it said of every test image.
      steps: optimizer steps to the best validation score.
      seconds: training time to there.
    """

    outcome: Outcome
    seed: int | None
    value: float
    predictions: Path
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Number:
    """What there is of a setting.

    Attributes:
      setting: the setting.
      status: how complete it is.
      reason: why it is not complete, or what failed on the way.
      expected: how many seeds it should have.
      runs: the seeds that it has; empty: there is no number.
      learning_rate: the one that was chosen, where there was a choice.
      analysis: what was found, if it is an analysis.
      outcomes: of all cells that could be needed.
    """

    setting: PlannedSetting
    status: Status
    reason: str = ""
    expected: int = 0
    runs: tuple[Run, ...] = ()
    learning_rate: float | None = None
    analysis: Outcome | None = None
    outcomes: tuple[Outcome, ...] = ()

    @property
    def result(self) -> Result:
        """The result of the first seed; there must be one."""
        result = self.runs[0].outcome.result
        assert result is not None
        return result

    @property
    def metric(self) -> str:
        """Name of the metric that selects, by which the setting is judged."""
        return self.result.best.metric

    @property
    def label(self) -> str:
        """The metric as tables name it."""
        return describe(self.metric).labels[self.result.test.task]

    @property
    def values(self) -> np.ndarray:
        """The test metric of each seed."""
        return np.array([run.value for run in self.runs])

    @property
    def mean(self) -> float:
        """The test metric in the mean over the seeds; NaN: there is none, or it is undefined."""
        return float(self.values.mean()) if self.runs else math.nan

    @property
    def std(self) -> float:
        """Its standard deviation over the seeds (of a sample); NaN of fewer than two."""
        return float(self.values.std(ddof=1)) if len(self.runs) > 1 else math.nan

    @property
    def score(self) -> float:
        """Its mean such that more is better."""
        return selection_score(self.metric, self.mean)

    @property
    def difference(self) -> float:
        """Its mean less the published one; NaN where these are not of one metric, or not both."""
        published = self.setting.published
        if not self.runs or published is None or published.metric != self.metric:
            return math.nan
        return self.mean - published.mean

    @property
    def found(self) -> Mapping[str, Any] | None:
        """What a finished analysis found."""
        if self.analysis is None or self.analysis.analysis is None:
            return None
        return self.analysis.analysis["values"]

    @property
    def is_analysis(self) -> bool:
        """Whether it is no test metric, but what a network or a model was found to be like."""
        return self.setting.shows != "score"

    @property
    def headline(self) -> Headline | None:
        """Headline number of a finished analysis; None if it has none."""
        if self.analysis is None or self.analysis.analysis is None:
            return None
        values = self.analysis.analysis["headline"]
        return None if values is None else Headline(**values)

    @property
    def summary(self) -> str:
        """An analysis in a column of another metric: "CKA 0.754", or "figure"."""
        headline = self.headline
        if headline is None or headline.value is None:
            return "figure"
        return f"{headline.unit} {wording.number(headline.value)}"

    @property
    def speeds(self) -> list[Speed]:
        """Latencies that a finished timing measured; empty for anything else."""
        if self.analysis is None or self.analysis.analysis is None:
            return []
        return [Speed(**values) for values in self.analysis.analysis["speeds"]]

    @property
    def seconds(self) -> float:
        """Wall-clock time of all its finished cells."""
        return sum(sum(outcome.seconds.values()) for outcome in self.outcomes)

    @property
    def used(self) -> list[Outcome]:
        """The cells that the number is made of."""
        cells = [run.outcome for run in self.runs]
        return list(dict.fromkeys(cells if self.analysis is None else [self.analysis]))


def numbers_of(study: PlannedStudy, outcomes: Outcomes) -> list[Number]:
    """The numbers of all settings, in their order."""
    return [_number(setting, outcomes) for setting in study.settings]


def _number(setting: PlannedSetting, outcomes: Outcomes) -> Number:
    if not setting.cells:
        return Number(setting=setting, status=Status.IMPOSSIBLE, reason=setting.why_not)
    cells = setting.cells
    found = {cell.id: outcomes[cell.id] for cell in cells}
    everything = tuple(found.values())
    # Of an analysis, the network's own cells say which rate is best.
    judged = [outcomes[cell.of] if cell.of else found[cell.id] for cell in cells]
    first = [
        (cell, outcome)
        for cell, outcome in zip(cells, judged, strict=True)
        if cell.seed == cells[0].seed
    ]
    sound = [pair for pair in first if pair[1].state is State.DONE]
    if not sound:
        return Number(
            setting=setting,
            status=_status_without(outcome for _, outcome in first),
            reason=_reasons([o for _, o in first], "learning rate" if len(first) > 1 else "cell"),
            expected=_seeds(cells),
            outcomes=everything,
        )
    best, _ = max(sound, key=lambda pair: _score(pair[1]))
    same = [found[cell.id] for cell in cells if cell.learning_rate == best.learning_rate]
    done = [outcome for outcome in same if outcome.state is State.DONE]
    undone = [outcome for outcome in same if outcome.state is not State.DONE]
    untried = [outcome for _, outcome in first if outcome.state is not State.DONE]
    unsettled = [outcome for outcome in untried if outcome.state is not State.FAILED]
    reasons = (_reasons(undone, "seed" if done else "cell"), _reasons(untried, "learning rate"))
    if not done:
        status = _status_without(same)
    else:
        status = Status.PARTIAL if undone or unsettled else Status.DONE
    common: dict[str, Any] = {
        "setting": setting, "status": status, "outcomes": everything,
        "reason": "; ".join(filter(None, reasons)),
    }  # fmt: skip
    if done and done[0].analysis is not None:
        rate = best.learning_rate
        return Number(**common, expected=1, analysis=done[0], learning_rate=rate)
    runs = tuple(run for outcome in done for run in _runs(outcome))
    rate = best.learning_rate
    grid = done[0].result.details if done and done[0].result else {}
    if "heads" in grid:
        rate = grid["chosen"]["learning_rate"]
    expected = max(len(same), len(runs))
    return Number(**common, expected=expected, runs=runs, learning_rate=rate)


def _score(outcome: Outcome) -> float:
    """How a finished cell did on validation; an analysis without a network to choose: the same."""
    if outcome.result is None:
        return 0.0
    best = outcome.result.best
    return selection_score(best.metric, best.value)


def _runs(outcome: Outcome) -> list[Run]:
    """The seeds of a finished cell: one, or those of the chosen rate of a grid of heads."""
    result = outcome.result
    assert result is not None
    details, best = result.details, result.best
    if "heads" not in details:
        return [
            Run(
                outcome=outcome,
                seed=result.seed if result.steps else None,
                value=result.test.values[best.metric],
                predictions=outcome.folder / PREDICTIONS,
                steps=best.step,
                seconds=best.seconds,
            )
        ]
    files: Mapping[str, str] = details["seeds"]["predictions"]
    return [
        Run(
            outcome=outcome,
            seed=head["seed"],
            value=math.nan if (value := head["test"][best.metric]) is None else value,
            predictions=outcome.folder / files[str(head["seed"])],
            steps=head["best_step"],
            seconds=best.seconds,
        )
        for head in details["heads"]
        if head["learning_rate"] == details["chosen"]["learning_rate"]
    ]


def _seeds(cells: Sequence[PlannedCell]) -> int:
    return sum(cell.learning_rate == cells[0].learning_rate for cell in cells)


def _status_without(outcomes: Iterable[Outcome]) -> Status:
    """What a setting without any number is."""
    failed = any(outcome.state is State.FAILED for outcome in outcomes)
    return Status.FAILED if failed else Status.MISSING


def _reasons(outcomes: Sequence[Outcome], unit: str) -> str:
    """Why outcomes are not there, each reason once with how many `unit`s it holds of."""
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
