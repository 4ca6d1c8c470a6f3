"""Starts commands of the campaign, each in a session of its own, and waits with a limit."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiling import FAST

from .commands import ROOT

INJECTED = Path(__file__).parent / "injected"

_LAST_SECONDS = 30.0  # for processes that a command has left behind


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
      code: exit code; a negative one is a signal.
      out, err: text on its standard output and standard error.
      seconds: time that it took.
      hung: True if it was killed for not ending.
    """

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False


class Started:
    """A command at work.

    Args:
      argv: command line.
      here: working folder; temporary files are in `tmp` beside it.
      faults: value of the variable `FAULTS`; see `injected/sitecustomize.py`.
      out: file to print to; None: a pipe.
    """

    def __init__(
        self,
        argv: Sequence[str],
        here: Path,
        *,
        faults: Mapping[str, Any] | None = None,
        out: Path | None = None,
    ):
        self.here, self._since = here, time.monotonic()
        tmp = here.parent / "tmp"
        tmp.mkdir(exist_ok=True)
        env = {name: value for name, value in os.environ.items() if name != "FAULTS"}
        env |= {"PYTHONPATH": f"{INJECTED}{os.pathsep}{ROOT}", "TMPDIR": str(tmp)}
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(FAST)}
        env["PYTHONDONTWRITEBYTECODE"] = "1"  # beside a config, which is Python
        if faults is not None:
            env["FAULTS"] = json.dumps({"under": str(here), **faults})

        printed = subprocess.PIPE if out is None else out.open("wb")
        self.process = subprocess.Popen(
            argv,
            cwd=here,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if out is not None:
            printed.close()  # type: ignore[union-attr]

    def signal(self, number: int, *, to_all: bool = False) -> None:
        """Send a signal to the command, or to its whole group."""
        if to_all:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def sleep(self, seconds: float) -> bool:
        """Wait; False if the command ended meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def wait(self, limit: float) -> Ended:
        """Wait for the end; kill the command, and all that it has started, after the limit."""
        hung = False
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            hung = True
            kill_all(self.here)
            out, err = self.process.communicate()
        return Ended(
            self.process.returncode,
            (out or b"").decode(errors="replace"),
            err.decode(errors="replace"),
            time.monotonic() - self._since,
            hung,
        )


def at_work(here: Path) -> list[int]:
    """Processes whose working folder is `here`; on Linux only."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(place) == str(here):
                found.append(int(place.parent.name))
        except OSError:  # it has ended
            continue
    return found


def kill_all(here: Path) -> None:
    """Kill every process whose working folder is `here`: those of one case."""
    for pid in at_work(here):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    left_behind(here)


def left_behind(here: Path, seconds: float = _LAST_SECONDS) -> list[int]:
    """Wait for what a command has left at work; returns what still is after that time."""
    end = time.monotonic() + seconds
    while (pids := at_work(here)) and time.monotonic() < end:
        time.sleep(0.05)
    return pids
