"""How a cell stands and how it did, from the files in its folder, for drivers and reports."""

import dataclasses
import enum
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from fmi_jax.artifacts import sealed
from fmi_jax.artifacts.result import FILE_NAME as RESULT, read_values
from fmi_jax.fields import flatten
from fmi_jax.tasks.registry import describe

# A report starts without jax, so this module imports neither it nor what imports it.

CELL = "cell.json"
"""File with the name and the config of the cell, beside the files of its run."""

FAILED = "failed.json"
"""File with the reason of its failure, if it failed."""

LOG = "log.txt"
"""File with the output of its process."""

CELL_FORMAT = 1
"""Format number of `CELL` and `FAILED`."""

RUN_AGAIN = "delete the folder of the cell to run it again"
"""Way out of a damaged file of a cell."""

_MISSING = "its cell counts as missing. Delete its folder to run it again"

T = TypeVar("T")


class State(enum.StrEnum):
    """State of a cell.

    Drivers tell who is at work (`RUNNING`) from what is left (`OPEN`). A report, which may read a
    copy of the folder, tells what was begun from what was not, and a result that is `DAMAGED`.
    """

    DONE = "done"
    FAILED = "failed"
    DAMAGED = "damaged"
    RUNNING = "running"
    BEGUN = "begun"
    OPEN = "open"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Failure of a cell.

    Attributes:
      reason: reason in one line.
      exit_code: exit code of the cell's process; a negative one is the signal that ended it.
      host: name of the machine that it ran on.
      time: end of the process as ISO 8601.
    """

    reason: str
    exit_code: int
    host: str
    time: str


@dataclasses.dataclass(frozen=True)
class Score:
    """Validation score of a finished cell: name of the metric that selects, and its value."""

    metric: str
    value: float


NO_SCORE = Score("", 0.0)
"""Score of a finished cell that chose nothing on validation; all such cells are equal."""


def ended(folder: Path) -> State | None:
    """How the cell of a folder has ended (`DONE` or `FAILED`); None: it has not."""
    if (folder / RESULT).is_file():
        return State.DONE
    return State.FAILED if (folder / FAILED).is_file() else None


def best(scored: Iterable[tuple[T, Score | None]]) -> T:
    """The item that is best on validation; the first of equal ones, and of those without scores."""

    def rank(pair: tuple[T, Score | None]) -> float:
        score = pair[1] or NO_SCORE
        return describe(score.metric).score(score.value) if score.metric else score.value

    return max(scored, key=rank)[0]


def read_failure(folder: Path) -> Failure:
    """Why the failed cell of a folder failed; `UserError` where that cannot be read."""
    path = folder / FAILED
    with sealed.reading(path, "the failure of a cell", RUN_AGAIN):
        values = sealed.read(path, CELL_FORMAT)
        if not isinstance(values["reason"], str):
            raise TypeError("the reason is no text")
        return Failure(**{field.name: values[field.name] for field in dataclasses.fields(Failure)})


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of the cell of a folder, as plain JSON values.

    Raises:
      UserError: it cannot be read, or the folder is a copy of another cell's.
    """
    path = folder / CELL
    with sealed.reading(path, "the config of a cell", RUN_AGAIN):
        values = sealed.read(path, CELL_FORMAT)
        if (name := values.get("cell", folder.name)) != folder.name:
            raise ValueError(f"it is that of {name}")
        flatten(values["config"])  # refuses what is no config
        return values["config"]


def of_result(folder: Path) -> AbstractContextManager[None]:
    """Turn whatever the damaged result of a cell raises in the block into one message."""
    return sealed.reading(folder / RESULT, "the result of a run", _MISSING)


def read_result(folder: Path) -> dict[str, Any]:
    """Read the JSON values of the result of a finished cell.

    Raises:
      UserError: it is damaged, was edited, or is of another cell; the message names the file.
    """
    with of_result(folder):
        values = read_values(folder / RESULT)
        math.fsum(values["seconds"].values())
        if values["best"] is not None:
            str.format("{:s} {:g}", values["best"]["metric"], values["best"]["value"] or 0)
        if (folder / CELL).is_file():
            asked, done = flatten(read_config(folder)), flatten(values["config"])
            for name in asked:
                if name in done and asked[name] != done[name]:
                    raise ValueError(
                        f"it is of another cell: {name} is {done[name]!r} there, and"
                        f" {asked[name]!r} in {CELL}"
                    )
        return values
