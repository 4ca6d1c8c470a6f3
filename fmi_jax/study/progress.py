"""Progress of a driver: bars on a terminal (study and running cells), plain lines elsewhere."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import rich.console
import rich.progress

from fmi_jax.study.cells import Cell

_STEP = re.compile(rb"step (\d+)/(\d+)")
_TAIL = 4096  # bytes to read from the end of a log


class Progress:
    """Reports on the cells of a study; a context manager.

    Args:
      total: number of cells in the end.
      done: number of cells that ended before.
    """

    def __init__(self, total: int, done: int):
        self._total, self._done = total, done
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        if sys.stdout.isatty():
            self._bars = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                console=rich.console.Console(),
            )
            self._all = self._bars.add_task("cells", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def started(self, cell: Cell) -> None:
        """Report that a cell has started."""
        if self._bars is not None:
            self._tasks[cell.id] = self._bars.add_task(f"  {title(cell)}", total=None)
        else:
            self._say(f"start   {title(cell)}")

    def done(self, cell: Cell, result: Mapping[str, Any], seconds: float) -> None:
        """Report that a cell is finished."""
        self._ended(cell, f"done    {title(cell)}  {_score(result)}  {seconds:.0f} s")

    def failed(self, cell: Cell, reason: str) -> None:
        """Report that a cell has failed."""
        self._ended(cell, f"failed  {title(cell)}: {reason}")

    def tick(self, logs: Mapping[str, Path]) -> None:
        """Update the bars of the running cells from their logs."""
        if self._bars is None:
            return
        for cell, log in logs.items():
            if steps := steps_of(log):
                self._bars.update(self._tasks[cell], completed=steps[0], total=steps[1])

    def _ended(self, cell: Cell, line: str) -> None:
        self._done += 1
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(cell.id))
            self._bars.update(self._all, completed=self._done)
        self._say(line)

    def _say(self, line: str) -> None:
        line = f"[{self._done}/{self._total}] {line}"
        if self._bars is not None:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)


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


def steps_of(log: Path) -> tuple[int, int] | None:
    """Read the last step in a log, and the number of steps."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            found = _STEP.findall(file.read())
    except OSError:
        return None
    return (int(found[-1][0]), int(found[-1][1])) if found else None
