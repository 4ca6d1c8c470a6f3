"""Progress of a study: as its driver reports it, and from its folder alone."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.progress

from fmi_jax.errors import printable
from fmi_jax.study.cells import Cell
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import Plan
from fmi_jax.study.spec import Setting
from fmi_jax.study.state import LOG, State

_STEP = re.compile(rb"step (\d+)/(\d+)")
_TAIL = 4096  # bytes to read from the end of a log


class Progress(rich.progress.Progress):
    """Reports on the cells of a study; a context manager.

    It shows bars on a terminal, for the study and the running cells, and plain lines elsewhere.

    Args:
      total: number of cells in the end.
      done: number of cells that ended before.
    """

    def __init__(self, total: int, done: int):
        super().__init__(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._total, self._done = total, done
        self._all = self.add_task("cells", total=total, completed=done)
        self._bars: dict[str, rich.progress.TaskID] = {}

    def started(self, cell: Cell) -> None:
        """Report that a cell has started."""
        self._bars[cell.id] = self.add_task(f"  {title(cell)}", total=None)
        if self.disable:
            self._say(f"start   {title(cell)}")

    def done(self, cell: Cell, result: Mapping[str, Any], seconds: float) -> None:
        """Report that a cell is finished."""
        self._ended(cell, f"done    {title(cell)}  {_score(result)}  {seconds:.0f} s")

    def failed(self, cell: Cell, reason: str) -> None:
        """Report that a cell has failed."""
        self._ended(cell, f"failed  {title(cell)}: {reason}")

    def tick(self, logs: Mapping[str, Path]) -> None:
        """Update the bars of the running cells from their logs."""
        for cell, log in logs.items():
            if not self.disable and (steps := _steps_of(log)):
                self.update(self._bars[cell], completed=steps[0], total=steps[1])

    def _ended(self, cell: Cell, line: str) -> None:
        self._done += 1
        self.remove_task(self._bars.pop(cell.id))
        self.update(self._all, completed=self._done)
        self._say(line)

    def _say(self, line: str) -> None:
        line = printable(f"[{self._done}/{self._total}] {line}")
        if self.disable:
            print(line, flush=True)
        else:
            self.console.print(line, highlight=False, markup=False)


def title(cell: Cell) -> str:
    """Title of a cell for the user: its name, learning rate and seed."""
    what = cell.id
    if cell.learning_rate is not None:
        what += f" lr={cell.learning_rate:g}"
    if cell.seed is not None:
        what += f" seed={cell.seed}"
    return what


def _score(result: Mapping[str, Any]) -> str:
    if result["best"] is None:
        return ""
    metric = result["best"]["metric"]
    value = result["findings"][0]["evaluations"]["test"]["values"][metric]
    return f"test {metric} {'undefined' if value is None else f'{value:.4f}'}"


def _steps_of(log: Path) -> tuple[int, int] | None:
    """Read the last step in a log, and the number of steps."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            found = _STEP.findall(file.read())
    except OSError:
        return None
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def describe_status(plan: Plan, settings: Sequence[Setting], root: Path) -> str:
    """Describe the cells by row of the table, the running ones, and the reasons of failures."""
    ledger = Ledger(root)
    states = {cell: ledger.state(cell) for cell in plan.all_cells(settings)}
    scores = ledger.ended(states)
    rows: dict[str, list[Setting]] = {}
    for setting in settings:
        name = " ".join(setting.at[c] for c in plan.study.rows if c in setting.at) or "all"
        rows.setdefault(name, []).append(setting)
    width = max(map(len, rows))
    lines = [plan.study.title, f"{'':<{width}}  done  running  failed  of"]
    for name, of_row in rows.items():
        here = [states[cell] for cell in plan.due(of_row, scores)]
        done, running, failed = map(here.count, (State.DONE, State.RUNNING, State.FAILED))
        total = plan.count(of_row)
        lines.append(f"{name:<{width}}  {done:>4}  {running:>7}  {failed:>6}  {total:>2}")
    due = plan.due(settings, scores)
    for id, cell in due.items():
        if states[id] is State.RUNNING:
            steps = _steps_of(ledger.folder(id) / LOG)
            at = "" if steps is None else f": step {steps[0]} of {steps[1]}"
            lines.append(f"running  {title(cell)}{at}")
    for id, cell in due.items():
        if states[id] is State.FAILED:
            failure = ledger.failure(id)
            lines.append(printable(f"failed   {title(cell)} ({failure.time}): {failure.reason}"))
    return "\n".join(lines)
