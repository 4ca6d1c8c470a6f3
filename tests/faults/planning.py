"""Draws the cases of a campaign: which command, which fault, when and where."""

import dataclasses
import itertools
import random

from .commands import DONE, FRESH, HALF, SCENARIOS, Scenario

_OF_WRITES = ("change", "refused", "limit", "tmpfs", "read-only")
_WEIGHTS = {FRESH: 2, HALF: 3, DONE: 1}

FAULTS = {
    "kill": "SIGKILL at any moment, to the command alone or to all its processes",
    "change": "SIGKILL before any change of a file, in the command or in a process it started",
    "SIGTERM": "SIGTERM at any moment, or before any change of a file",
    "SIGINT": "SIGINT, as by Ctrl-C, likewise",
    "SIGUSR1": "SIGUSR1 likewise",
    "refused": "a change of a file fails: disk full, quota, read-only, I/O error",
    "limit": "no file may grow beyond a size (RLIMIT_FSIZE)",
    "full": "the output, or what the command prints, goes to /dev/full",
    "tmpfs": "a small disk of its own, which is full before the end",
    "read-only": "a folder that cannot be written to",
    "flip": "one bit of a file that is read has changed",
    "clock": "the clock jumps, and files are of the past or the future",
    "pair": "the command twice at once",
}
"""Every fault, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One disturbance of one command.

    Attributes:
      number: number of the case; with the seed it says everything else.
      scenario: command.
      fault: name in `FAULTS`.
      begin: state that the command begins in.
      at, which: numbers from 0 to 1 that say when, and where or how.
    """

    number: int
    scenario: Scenario
    fault: str
    begin: str
    at: float
    which: float

    def __str__(self) -> str:
        return f"case {self.number}: {self.scenario.name} ({self.begin}), {self.fault}"


def applies(fault: str, scenario: Scenario) -> bool:
    """Whether a fault can disturb a command at all."""
    if fault in _OF_WRITES:
        return bool(scenario.makes)
    return fault != "flip" or bool(scenario.reads)


def pairs() -> list[tuple[Scenario, str]]:
    """Every command with every fault that can disturb it."""
    both = itertools.product(SCENARIOS, FAULTS)
    return [(scenario, fault) for scenario, fault in both if applies(fault, scenario)]


def case(seed: int, number: int) -> Case:
    """Draw a case; every pair of a command and a fault comes once before any comes twice."""
    every = pairs()
    turn, place = divmod(number, len(every))
    random.Random(f"order {seed} {turn}").shuffle(every)
    scenario, fault = every[place]
    draw = random.Random(f"case {seed} {number}")
    weights = [_WEIGHTS[each] for each in scenario.begins]
    (begin,) = draw.choices(scenario.begins, weights)
    if fault == "flip" and begin == FRESH and HALF in scenario.begins:
        begin = HALF  # what is fresh has little that can be damaged
    return Case(
        number=number,
        scenario=scenario,
        fault=fault,
        begin=begin,
        at=draw.random(),
        which=draw.random(),
    )
