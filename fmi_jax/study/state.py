"""How a cell stands and how it did, from the files in its folder, for drivers and reports."""

import dataclasses
import enum
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fmi_jax.artifacts import older
from fmi_jax.artifacts.result import FILE_NAME as RESULT
from fmi_jax.errors import UserError
from fmi_jax.tasks.registry import describe

# A report starts without jax, so this module imports neither it nor what imports it.

CELL = "cell.json"
"""File with the config of the cell, beside the files of its run."""

FAILED = "failed.json"
"""File with the reason of its failure, if it failed."""

LOG = "log.txt"
"""File with the output of its process."""

CELL_FORMAT = 1
"""Format number of `CELL` and `FAILED`."""

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
    names = [field.name for field in dataclasses.fields(Failure)]
    return Failure(**read_file(folder / FAILED, CELL_FORMAT, names))


def read_file(path: Path, known: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Content of a cell's JSON file; where `names` are given, only these keys.

    Raises:
      UserError: it cannot be read, lacks a key, or is of a later format than `known`.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        older.format_of(values, known, path)
        return {name: values[name] for name in names or values}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete the folder of the"
            " cell to run it again."
        ) from error
