"""How each fault disturbs a command; each function returns what is wrong."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from .commands import argv
from .invariants import entry, said
from .planning import Case
from .processes import Ended, Started, kill_all, left_behind
from .world import Reference

REFUSED = ("ENOSPC", "EDQUOT", "EROFS", "EIO")
JUMPS = (-20 * 365 * 86400, -3600, -1, 3600, 86400, 20 * 365 * 86400)  # in seconds
_FIRST_LOOKS = 300  # at the clock, most of which come while Python imports


@dataclasses.dataclass
class Disturbed:
    """A case at work.

    Attributes:
      case: command, state that it begins in, and fault.
      here: working folder of the command.
      reference: undisturbed outcome.
      limit: seconds after which a command hangs.
      log: commands that were given, and how they ended.
      ignored: entries of a snapshot that are not compared, because the fault itself changed them.
    """

    case: Case
    here: Path
    reference: Reference
    limit: float
    log: list[str] = dataclasses.field(default_factory=list)
    ignored: set[str] = dataclasses.field(default_factory=set)

    def start(self, **options: Any) -> Started:
        """Start the command of the case."""
        return Started(argv(self.case.scenario), self.here, **options)

    def end(self, started: Started, codes: Collection[int], what: str) -> list[str]:
        """Wait for the end of a command; returns what is wrong with it."""
        return self.judge(started.wait(self.limit), codes, what)

    def judge(self, ended: Ended, codes: Collection[int], what: str) -> list[str]:
        """Keep what a command printed; returns what is wrong with it."""
        self.log.append(f"--- {what}: exit code {ended.code}\n{ended.out}{ended.err}")
        return [f"{what}: {wrong}" for wrong in said(ended, codes)]

    def aimed(self, action: str) -> dict[str, Any]:
        """Options of a process that acts before a change of a file."""
        changes = self.reference.changes
        kinds = [kind for kind, count in changes.items() if count]
        within = kinds[int(self.case.which * 997) % len(kinds)] if kinds else "main"
        at = 1 + int(self.case.at * changes[within])
        self.log.append(f"--- {action} before change {at} of {changes[within]} in {within}")
        mark = str(self.here.parent / "mark")
        return {"within": within, "at": at, "action": action, "mark": mark}


def kill(disturbed: Disturbed) -> list[str]:
    case = disturbed.case
    started = disturbed.start()
    if started.sleep(case.at * 1.1 * disturbed.reference.seconds):
        if case.which < 0.5:
            kill_all(disturbed.here)
        else:
            started.signal(signal.SIGKILL)
    return disturbed.end(started, {0, -signal.SIGKILL}, "killed")


def change(disturbed: Disturbed) -> list[str]:
    faults = disturbed.aimed("SIGKILL")
    codes = {0, -signal.SIGKILL} if faults["within"] == "main" else {0, 1}
    found = disturbed.end(disturbed.start(faults=faults), codes, "killed")
    if disturbed.case.which < 0.5:
        kill_all(disturbed.here)
    return found


def asked(disturbed: Disturbed) -> list[str]:
    """SIGTERM, SIGINT or SIGUSR1."""
    case = disturbed.case
    number = signal.Signals[case.fault]
    codes = {0, 143, -number} | ({130} if number is signal.SIGINT else set())
    if case.which < 0.5 and any(disturbed.reference.changes.values()):
        faults = disturbed.aimed(case.fault)
        codes |= {1} if faults["within"] == "worker" else set()
        started = disturbed.start(faults=faults)
    else:
        started = disturbed.start()
        if started.sleep(case.at * 1.1 * disturbed.reference.seconds):
            started.signal(number, to_all=number is signal.SIGINT)
    ended = started.wait(disturbed.limit)
    found = disturbed.judge(ended, codes, case.fault)
    # A signal that nobody hears is as SIGKILL: cells of a study go on to their end.
    return found if ended.code == -number else [*found, *_abandoned(disturbed)]


def refused(disturbed: Disturbed) -> list[str]:
    action = REFUSED[int(disturbed.case.which * 9973) % len(REFUSED)]
    started = disturbed.start(faults=disturbed.aimed(action))
    return [*disturbed.end(started, {0, 1, 2}, action), *_abandoned(disturbed)]


def limit(disturbed: Disturbed) -> list[str]:
    largest = max((p.stat().st_size for p in disturbed.here.rglob("*") if p.is_file()), default=1)
    size = int(max(largest, 1 << 16) ** disturbed.case.at)
    what = f"files up to {size} bytes"
    found = disturbed.end(disturbed.start(faults={"file_limit": size}), {0, 1}, what)
    return [*found, *_abandoned(disturbed)]


def full(disturbed: Disturbed) -> list[str]:
    case, device = disturbed.case, Path("/dev/full")
    target = disturbed.here / case.scenario.makes[0] if case.scenario.makes else None
    if case.which < 0.5 or target is None or target.exists():
        return disturbed.end(disturbed.start(out=device), {0, 1}, "prints to /dev/full")
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(device)
    found = disturbed.end(disturbed.start(), {1, 2}, "writes to /dev/full")
    if not target.is_symlink():
        found.append(f"{target.name}, a link to a device, was replaced")
    target.unlink()
    return found


def tmpfs(disturbed: Disturbed) -> list[str]:
    here, aside = disturbed.here, disturbed.here.with_name("aside")
    here.rename(aside)
    here.mkdir()
    files = [path.stat().st_size for path in aside.rglob("*") if path.is_file()]
    size = sum(-(-each // 4096) * 4096 for each in files) + 4096 * (len(files) + 64)
    room = int(disturbed.case.at * 3e6)
    mount(here, size + room)
    shutil.copytree(aside, here, symlinks=True, dirs_exist_ok=True)
    found = disturbed.end(disturbed.start(), {0, 1}, f"{room} bytes free")
    found += _abandoned(disturbed)
    mount(here, size + (1 << 28), again=True)
    return found


def read_only(disturbed: Disturbed) -> list[str]:
    here, makes = disturbed.here, disturbed.case.scenario.makes
    inside = [p for m in makes for p in [here / m, *sorted((here / m).rglob("*"))] if p.is_dir()]
    places = [here, *inside]
    place = places[int(disturbed.case.which * len(places))]
    before = place.stat().st_mode
    place.chmod(0o555)
    what = f"{place.relative_to(here.parent)} is read-only"
    found = disturbed.end(disturbed.start(faults={"bound": True}), {0, 1, 2}, what)
    found += _abandoned(disturbed)
    if place.exists():
        place.chmod(before)
    return found


def flip(disturbed: Disturbed) -> list[str]:
    case, here = disturbed.case, disturbed.here
    patterns = case.scenario.reads
    files = sorted({p for each in patterns for p in here.glob(each) if p.is_file()})
    files = [path for path in files if path.stat().st_size]
    file = files[int(case.which * len(files))]
    times, content = file.stat(), file.read_bytes()
    bit = int(case.at * 8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    name = file.relative_to(here).as_posix()
    ended = disturbed.start().wait(disturbed.limit)
    found = disturbed.judge(ended, {0, 1, 2}, f"bit {bit} of {name} flipped")
    named = ended.code == 0 and name in ended.err  # a report leaves it out, and says so
    if ended.code == 0 and not named:  # it was not read, or there was another way
        if file.exists() and file.read_bytes() == bytes(changed):
            disturbed.ignored.add(entry(name))
        return found
    if file.parent.is_dir():
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return found


def clock(disturbed: Disturbed) -> list[str]:
    case = disturbed.case
    jump = JUMPS[int(case.which * len(JUMPS))]
    files = [path for path in disturbed.here.rglob("*") if path.is_file()]
    for path in files[:: 1 + int(case.at * 7)]:
        times = path.stat()
        os.utime(path, (times.st_atime + jump, times.st_mtime + jump))
    after = int(case.at * _FIRST_LOOKS)
    what = f"{jump} s at look {after} at the clock"
    return disturbed.end(disturbed.start(faults={"clock": [after, jump]}), {0}, what)


def pair(disturbed: Disturbed) -> list[str]:
    first = disturbed.start()
    first.sleep(disturbed.case.at * disturbed.reference.seconds)
    second = disturbed.start()
    found = disturbed.end(first, {0, 1, 2}, "first of two")
    found += disturbed.end(second, {0, 1, 2}, "second of two")
    return [*found, *_abandoned(disturbed)]


INJECTIONS: dict[str, Callable[[Disturbed], list[str]]] = {
    "kill": kill,
    "change": change,
    "SIGTERM": asked,
    "SIGINT": asked,
    "SIGUSR1": asked,
    "refused": refused,
    "limit": limit,
    "full": full,
    "tmpfs": tmpfs,
    "read-only": read_only,
    "flip": flip,
    "clock": clock,
    "pair": pair,
}
"""By the names of `planning.FAULTS`."""


def impossible(folder: Path) -> Iterator[tuple[str, str]]:
    """Find the faults that this machine does not allow, and why."""
    trial = folder / "trial"
    trial.mkdir()
    try:
        mount(trial, 1 << 16)
        unmount(trial)
    except (OSError, subprocess.SubprocessError):
        yield "tmpfs", "nothing can be mounted here"
    if not Path("/dev/full").exists():
        yield "full", "there is no /dev/full"
    check = "import os, sys; sys.exit(os.access('trial', os.W_OK))"  # 1 if it can be written to
    trial.chmod(0o555)
    command = [sys.executable, "-c", check]
    if Started(command, folder, faults={"bound": True}).wait(60).code:
        yield "read-only", "permissions do not hold for this user"


def mount(place: Path, size: int, *, again: bool = False) -> None:
    """Mount a disk of some bytes in memory, or change its size."""
    options = f"{'remount,' if again else ''}size={size},mode=755"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, capture_output=True
    )


def unmount(place: Path) -> None:
    """Take away what `mount` has put there; nothing where there is none."""
    if place.is_mount():
        subprocess.run(["umount", place], check=True, capture_output=True)


def _abandoned(disturbed: Disturbed) -> list[str]:
    """Find processes that a command has left at work; they are killed."""
    pids = left_behind(disturbed.here)
    kill_all(disturbed.here)
    return [f"{len(pids)} process(es) left at work"] if pids else []
