"""Outcomes of a study's cells, read from their folders."""

import dataclasses
import operator
from collections.abc import Mapping
from pathlib import Path

from fmi_jax.artifacts.result import FILE_NAME as RESULT, Finding, Result
from fmi_jax.errors import UserError
from fmi_jax.study.state import CELL, Score, State, ended, of_result, read_failure, read_result


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """State and result of a cell.

    Attributes:
      id: cell's name.
      folder: cell's folder, which need not exist.
      state: `DONE`, `FAILED`, `DAMAGED`, `BEGUN` or `OPEN`.
      reason: reason of a failure, or the fault in the cell's files.
      result: result of a finished cell.
    """

    id: str
    folder: Path
    state: State
    reason: str = ""
    result: Result | None = None

    @property
    def analysis(self) -> Finding | None:
        """Finding of a finished cell that has no test metrics."""
        if self.result is None or self.result.finding.evaluations:
            return None
        return self.result.finding

    @property
    def finished(self) -> Result:
        """Result of the cell, which must be finished."""
        assert self.result is not None
        return self.result

    @property
    def score(self) -> Score | None:
        """Validation score; None for an analysis, and for a cell that is not finished."""
        best = None if self.result is None else self.result.best
        return None if best is None else Score(best.metric, best.value)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall-clock time by phase; empty if the cell is not finished."""
        return {} if self.result is None else self.result.seconds

    @property
    def total(self) -> float:
        """Wall-clock time of all phases together."""
        return sum(self.seconds.values())

    @property
    def device(self) -> str:
        """Hardware that a finished cell ran on: "4 x NVIDIA H100"."""
        found = self.finished.device
        kind, count = str(found.get("kind", "unknown")), found.get("count", 1)
        return kind if count == 1 else f"{count} \N{MULTIPLICATION SIGN} {kind}"

    @property
    def page(self) -> Path:
        """File to show to a reader: the cell's report, or else its result."""
        report = self.folder / "report.html"
        return report if report.is_file() else self.folder / RESULT

    @property
    def written(self) -> Path:
        """Path of its `result.json`."""
        return self.folder / RESULT


class Outcomes:
    """Outcomes of the cells under a folder, each read once, so that studies agree on shared cells.

    A finished cell counts as missing if its `result.json` is damaged, edited, of another cell, or
    contradicts its predictions: a broken file must not hide all others, and no number may be made
    up for it. Its reason names the file.

    Args:
      root: folder of the studies.
    """

    def __init__(self, root: Path):
        self.root = root
        self._read: dict[str, Outcome] = {}

    def __getitem__(self, cell: str) -> Outcome:
        """Outcome of a cell at the time it was first asked for."""
        if cell not in self._read:
            self._read[cell] = _outcome(cell, self.root / "cells" / cell)
        return self._read[cell]

    def leave_out(self, outcome: Outcome, reason: str) -> None:
        """Have a finished cell count as missing from now on."""
        damaged = dataclasses.replace(outcome, state=State.DAMAGED, reason=reason, result=None)
        self._read[outcome.id] = damaged


def _outcome(cell: str, folder: Path) -> Outcome:
    state, reason = ended(folder), ""
    try:
        if state is State.DONE:
            return _finished(cell, folder)
        if state is State.FAILED:
            reason = read_failure(folder).reason
    except UserError as error:
        reason = str(error)
        state = State.DAMAGED if state is State.DONE else state
    begun = State.BEGUN if (folder / CELL).is_file() else State.OPEN
    return Outcome(id=cell, folder=folder, state=state or begun, reason=reason)


def _finished(cell: str, folder: Path) -> Outcome:
    with of_result(folder):
        result = Result.from_json(read_result(folder))
        _check(result)
        return Outcome(id=cell, folder=folder, state=State.DONE, result=result)


def _check(result: Result) -> None:
    """Raise `KeyError` unless the result has everything that the report relies on."""
    operator.itemgetter("name", "counts", "split", "split_sha256")(result.dataset)
    operator.itemgetter("protocol")(result.config)
    if not result.finding.evaluations:
        return
    if result.best is None:
        raise KeyError("best")
    metric, values = operator.itemgetter(result.best.metric), result.finding.values
    metric(result.test.values)
    for head in values.get("heads", ()):
        operator.itemgetter("seed", "best_step")(head)
        metric(head["val"])
        metric(head["test"])
        if head["learning_rate"] == values["chosen"]["learning_rate"]:
            operator.itemgetter(str(head["seed"]))(values["seeds"]["predictions"])
