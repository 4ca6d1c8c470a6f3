"""Driver: runs the cells of a plan, several at a time, until nothing is left to do here."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fmi_jax.cores import available_cores
from fmi_jax.errors import UsageError
from fmi_jax.huge_pages import with_huge_pages
from fmi_jax.study.cells import Cell
from fmi_jax.study.ledger import Claim, Ledger
from fmi_jax.study.plan import Missing, Plan
from fmi_jax.study.progress import Progress
from fmi_jax.study.spec import Setting
from fmi_jax.study.state import LOG, Score, State

WORKER = ("-m", "fmi_jax.study.worker")
"""Arguments of Python that run a cell, followed by its folder and its cores."""

_POLL_SECONDS = 0.2
_LOOK_AGAIN_SECONDS = 5.0  # interval for looking at the work of other drivers
_STOPPED = 143  # exit code of a run that was stopped and has saved


@dataclasses.dataclass(frozen=True)
class Slot:
    """Resources that run one cell at a time.

    Attributes:
      cores: CPU cores of this machine to run on.
      gpu: GPU as in `CUDA_VISIBLE_DEVICES`; None: whatever JAX finds.
    """

    cores: tuple[int, ...]
    gpu: str | None


def make_slots(jobs: int, gpus: Sequence[str]) -> list[Slot]:
    """Share the cores of this machine among slots: `jobs` of them, or one for each GPU.

    Raises:
      UsageError: fewer than one slot, or both `jobs` and `gpus`, are asked for.
    """
    if gpus and jobs != 1:
        raise UsageError("--jobs and --gpus: expected one of them; a GPU runs one cell at a time.")
    count = len(gpus) or jobs
    if count < 1:
        raise UsageError(f"--jobs {jobs}: expected 1 or more.")
    cores = available_cores()
    shares = [tuple(cores[i::count]) or tuple(cores) for i in range(count)]
    return [Slot(share, gpu) for share, gpu in zip(shares, gpus or [None] * count, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Running:
    cell: Cell
    claim: Claim
    process: subprocess.Popen[bytes]
    since: float


@dataclasses.dataclass
class Outcome:
    """State of the cells when a driver ends.

    Attributes:
      counts: number of due cells, by state.
      failures: reason of each failure, by cell.
      not_ready: missing files, by cell.
      stopped: True if the driver was asked to stop.
    """

    counts: dict[State, int]
    failures: dict[str, str]
    not_ready: dict[str, list[str]]
    stopped: bool


class Driver:
    """Runs the cells of some settings of a plan.

    Args:
      plan: plan of the study.
      settings: settings of the plan to run here.
      ledger: record of finished, failed and running cells.
      slots: resources; one cell at a time runs on each.
      retry: True to run failed cells again.

    Attributes:
      plan, ledger: the arguments of the same name.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Sequence[Setting],
        ledger: Ledger,
        slots: Sequence[Slot],
        *,
        retry: bool,
    ):
        self.plan, self.ledger = plan, ledger
        self._settings, self._slots = settings, list(slots)
        self._cells = plan.all_cells(settings)
        self._scores: dict[str, Score | None] = {}
        self._running: dict[Slot, _Running] = {}
        self._not_ready: dict[str, list[str]] = {}
        self._retry = {c for c in self._cells if retry and ledger.state(c) is State.FAILED}
        self._stopping = False
        ended = sum(ledger.state(cell) is State.DONE for cell in self._cells)
        self._progress = Progress(plan.count(settings), ended)

    def run(self) -> Outcome:
        """Work until every cell has ended, is not ready, or belongs to another driver."""
        with self._signals(), self._progress:
            try:
                self._work()
            except BaseException:  # such as a disk that cannot be written to
                self.stop()
                self.wait()
                for running in self._running.values():
                    running.claim.release()
                raise
        return self._outcome()

    def stop(self) -> None:
        """Make the running cells save and end, and start no more."""
        if not self._stopping:
            self._stopping = True
            for running in [*self._running.values()]:
                running.process.terminate()

    def wait(self) -> None:
        """Wait until the running cells have ended."""
        for running in [*self._running.values()]:
            running.process.wait()

    def _work(self) -> None:
        looked = -_LOOK_AGAIN_SECONDS
        while True:
            changed = self._reap()
            idle = len(self._running) < len(self._slots) and not self._stopping
            if idle and (changed or time.monotonic() - looked > _LOOK_AGAIN_SECONDS):
                self._start_all()
                looked = time.monotonic()
            if not self._running:
                return
            self._progress.tick({r.cell.id: r.claim.folder / LOG for r in self._running.values()})
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        # A batch system that handles a signal itself (submitit handles SIGTERM) continues to do so.
        own = (signal.SIG_DFL, signal.default_int_handler)
        heard = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) in own]
        before = {s: signal.signal(s, lambda *_: self.stop()) for s in heard}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _look(self) -> None:
        """Read the scores of cells that have ended since the last look."""
        new = [c for c in self._cells if c not in self._scores and c not in self._retry]
        self._scores |= self.ledger.ended({cell: self.ledger.state(cell) for cell in new})

    def _start_all(self) -> None:
        """Start due cells until no slot is free.

        Cells that share a program with a running cell come last: that cell is compiling it.
        """
        self._look()
        missing = Missing()
        at_work = {running.cell.id for running in self._running.values()}
        due = self.plan.due(self._settings, self._scores)
        waiting = [due[i] for i in due if i not in self._scores and i not in at_work]
        while waiting and len(self._running) < len(self._slots):
            compiled = {running.cell.program for running in self._running.values()}
            cell = next((c for c in waiting if c.program not in compiled), waiting[0])
            waiting.remove(cell)
            self._not_ready[cell.id] = missing.of(cell.apart)
            if not self._not_ready[cell.id]:
                self._start(cell)

    def _start(self, cell: Cell) -> None:
        claim = self.ledger.claim(cell, retry=cell.id in self._retry)
        if claim is None:
            return
        slot = next(slot for slot in self._slots if slot not in self._running)
        visible = {} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu}
        with (claim.folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *WORKER, str(claim.folder), ",".join(map(str, slot.cores))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=with_huge_pages(os.environ) | visible,
                pass_fds=(claim.descriptor,),
                # Not in the terminal's group: Ctrl-C reaches it through `stop`, once.
                start_new_session=True,
            )
        self._running[slot] = _Running(cell, claim, process, time.monotonic())
        self._progress.started(cell)

    def _reap(self) -> bool:
        """Record the cells that have ended; returns whether there were any."""
        ended = {s: r for s, r in self._running.items() if r.process.poll() is not None}
        for slot, running in ended.items():
            cell, code = running.cell, running.process.returncode
            seconds = time.monotonic() - running.since
            if self.ledger.state(cell.id) is State.DONE:
                self._progress.done(cell, self.ledger.result(cell.id), seconds)
            elif code != _STOPPED and not self._stopping:
                reason = _reason(running.claim.folder / LOG, code)
                running.claim.fail(reason, code)
                self._progress.failed(cell, reason)
            self._retry.discard(cell.id)
            running.claim.release()
            del self._running[slot]
        return bool(ended)

    def _outcome(self) -> Outcome:
        self._look()
        due = self.plan.due(self._settings, self._scores)
        states = {cell: self.ledger.state(cell) for cell in due}
        return Outcome(
            counts={state: list(states.values()).count(state) for state in State},
            failures={
                cell: self.ledger.failure(cell).reason
                for cell, state in states.items()
                if state is State.FAILED
            },
            not_ready={c: needs for c, needs in self._not_ready.items() if needs and c in due},
            stopped=self._stopping,
        )


_MOSTLY = {
    "SIGKILL": " (mostly: memory ran out)",
    "SIGABRT": " (mostly: XLA met a limit of memory, see ulimit -v)",
}


def _reason(log: Path, code: int) -> str:
    """Explain in one line why a process ended: its last error message, or the signal."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}{_MOSTLY.get(name, '')}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if re.match(r"error: |\w+(\.\w+)*(Error|Exception)\b", line)]
    return said[-1].removeprefix("error: ") if said else f"exit code {code}; see {log}"
