"""Ledger of finished, failed and running cells: a folder on a file system that the drivers share.

`<root>/cells/<id>/` is the folder of a cell's run. The driver that runs the cell holds an exclusive
lock (`flock`) on its file `.claim`, and so does the process of the run itself. The lock is gone
when both have ended, in whatever way, without any clock or heartbeat. A finished cell has a
`result.json`, a failed one a `failed.json` with the reason. A cell that was stopped or killed has
neither and resumes from its checkpoints.
"""

import dataclasses
import datetime
import fcntl
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmi_jax import atomic
from fmi_jax.errors import UserError
from fmi_jax.fields import as_dict
from fmi_jax.study.cells import Cell, following
from fmi_jax.study.state import (
    CELL,
    CELL_FORMAT,
    FAILED,
    NO_SCORE,
    Failure,
    Score,
    State,
    ended,
    read_failure,
    read_result,
)

_CLAIM = ".claim"  # file that is locked while the cell runs


@dataclasses.dataclass(frozen=True)
class Claim:
    """Right to run a cell: a lock that its process inherits.

    Attributes:
      descriptor: descriptor of the locked file, for `subprocess.Popen(pass_fds=...)`.
      folder: folder of the cell.
    """

    descriptor: int
    folder: Path

    def fail(self, reason: str, exit_code: int) -> None:
        """Mark the cell as failed."""
        failure = Failure(
            reason=reason,
            exit_code=exit_code,
            host=socket.gethostname(),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        values = {"format": CELL_FORMAT, **dataclasses.asdict(failure)}
        atomic.write_json(self.folder / FAILED, values, ensure_ascii=False)

    def release(self) -> None:
        """Release the lock on the cell."""
        os.close(self.descriptor)


class Ledger:
    """The cells of all studies under a folder.

    Args:
      root: folder of the studies; created if it is missing.

    Raises:
      UserError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, root: Path):
        self.root = root
        try:
            (root / "cells").mkdir(parents=True, exist_ok=True)
            _check_locks(root)
        except OSError as error:
            raise UserError(f"{root} cannot be used for a study: {error.strerror}.") from error

    def folder(self, cell: str) -> Path:
        """Folder in which a cell runs."""
        return self.root / "cells" / cell

    def state(self, cell: str) -> State:
        """Where a cell stands: `DONE`, `FAILED`, `RUNNING` or `OPEN`."""
        folder = self.folder(cell)
        return ended(folder) or (State.RUNNING if _is_locked(folder / _CLAIM) else State.OPEN)

    def ended(self, states: Mapping[str, State]) -> dict[str, Score | None]:
        """Read the scores of the cells that have ended; None for those that failed."""
        return {
            cell: self.score(cell) if state is State.DONE else None
            for cell, state in states.items()
            if state in (State.DONE, State.FAILED)
        }

    def claim(self, cell: Cell, *, retry: bool = False) -> Claim | None:
        """Claim the right to run a cell; None if it has ended or another driver runs it.

        Args:
          cell: cell to run.
          retry: True to claim it also if it failed before; that failure is forgotten.

        Raises:
          OSError: its folder cannot be written.
        """
        folder = self.folder(cell.id)
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / _CLAIM, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        state = ended(folder)
        if state is State.DONE or (state is State.FAILED and not retry):
            os.close(descriptor)
            return None
        (folder / FAILED).unlink(missing_ok=True)
        config = cell.config
        if cell.parent is not None:
            config = following(config, str(self.folder(cell.parent.id)))
        values = {"format": CELL_FORMAT, "cell": cell.id, "config": as_dict(config)}
        atomic.write_json(folder / CELL, values)
        return Claim(descriptor, folder)

    def failure(self, cell: str) -> Failure:
        """Why a failed cell failed."""
        return read_failure(self.folder(cell))

    def result(self, cell: str) -> dict[str, Any]:
        """Read the JSON values of the result of a finished cell; errors as in `read_result`."""
        return read_result(self.folder(cell))

    def score(self, cell: str) -> Score:
        """Validation score of a finished cell; `NO_SCORE` if it has none."""
        best = self.result(cell)["best"]
        if best is None:
            return NO_SCORE
        value = float("nan") if best["value"] is None else best["value"]
        return Score(best["metric"], value)


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _check_locks(root: Path) -> None:
    """Raise `UserError` if the file system has no locks: two drivers would run every cell twice."""
    path = root / ".locks"
    with path.open("a+b") as first, path.open("a+b") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_SH)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            pass
    raise UserError(
        f"{root} lies on a file system without flock, by which drivers agree who runs what:"
        " expected a local disk, NFS 4, or Lustre mounted with -o flock."
    )
