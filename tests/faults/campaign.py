"""Runs cases one after another, and counts them."""

import collections
import dataclasses
import shutil
import time
from pathlib import Path

from .commands import SCENARIOS
from .injections import INJECTIONS, Disturbed, impossible, unmount
from .invariants import differences, repeated, snapshot, strays
from .planning import FAULTS, Case, case as draw
from .processes import kill_all, left_behind
from .world import World

_LEAST_LIMIT, _TIMES = 120.0, 20  # seconds; and of the undisturbed time


@dataclasses.dataclass
class Outcome:
    """What a campaign has found.

    Attributes:
      counts: number of cases by command and fault.
      left_out: faults that this machine does not allow, with the reason.
      failures: list of the invariants that did not hold, by case.
    """

    counts: collections.Counter[tuple[str, str]]
    left_out: dict[str, str]
    failures: dict[Case, list[str]]


class Campaign:
    """Disturbs commands in a folder of its own.

    Args:
      folder: empty folder.
      seed: number that all cases follow from.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder.resolve(), seed
        self.world = World(self.folder / "world")
        self.outcome = Outcome(collections.Counter(), dict(impossible(self.folder)), {})

    def run(self, minutes: float) -> None:
        """Run cases until the time is up; the references, made before, do not count."""
        for scenario in SCENARIOS:
            reference = self.world.reference(scenario)
            print(f"reference: {scenario.name}, {reference.seconds:.0f} s", flush=True)
        end, number = time.monotonic() + 60 * minutes, 0
        while time.monotonic() < end:
            self.one(number)
            number += 1

    def one(self, number: int) -> bool:
        """Run a case; False if it failed."""
        case = draw(self.seed, number)
        if why := self.outcome.left_out.get(case.fault):
            print(f"{case}: left out, {why}", flush=True)
            return True
        begun = time.monotonic()
        wrong, log = self._disturb(case)
        self.outcome.counts[case.scenario.name, case.fault] += 1
        seconds = time.monotonic() - begun
        print(f"{case}: {seconds:.0f} s, {'FAILED' if wrong else 'held'}", flush=True)
        if wrong:
            self.outcome.failures[case] = wrong
            print("\n".join(f"  {each}" for each in wrong))
            print(f"  replay: python -m tests.faults --seed {self.seed} --case {number}")
            print("\n".join(f"  | {line}" for each in log for line in each.splitlines()[-40:]))
        return not wrong

    def _disturb(self, case: Case) -> tuple[list[str], list[str]]:
        """Disturb a command, give it again, and look; returns what is wrong, and a log."""
        here = self.folder / f"case-{case.number}" / "here"
        reference = self.world.reference(case.scenario)
        self.world.begin(case.scenario, case.begin, here)
        limit = max(_LEAST_LIMIT, _TIMES * reference.seconds)
        disturbed = Disturbed(case, here, reference, limit)
        try:
            wrong = INJECTIONS[case.fault](disturbed)
            if pids := left_behind(here, limit):  # orphans may end what they have begun
                wrong.append(f"{len(pids)} process(es) still at work")
            wrong += disturbed.end(disturbed.start(), {0}, "given again")
            found = snapshot(here, case.scenario.makes)
            ignored = disturbed.ignored
            kept = {n: v for n, v in found.items() if n not in ignored}
            expected = {n: v for n, v in reference.written.items() if n not in ignored}
            wrong += [*differences(expected, kept), *repeated(here)]
            wrong += strays(here, (*case.scenario.needs, *case.scenario.makes))
        finally:
            kill_all(here)  # where the campaign itself was interrupted
            unmount(here)
        if not wrong:
            shutil.rmtree(here.parent)
        return wrong, disturbed.log


def table(outcome: Outcome) -> str:
    """Counts of cases, a row for each command and a column for each fault."""
    names = [scenario.name for scenario in SCENARIOS]
    widths = {fault: len(fault) + 2 for fault in FAULTS}
    lines = [f"{'':10}" + "".join(f"{fault:>{width}}" for fault, width in widths.items())]
    for name in names:
        counts = {fault: outcome.counts[name, fault] for fault in FAULTS}
        cells = "".join(f"{counts[fault] or '-':>{width}}" for fault, width in widths.items())
        lines.append(f"{name:10}{cells}")
    total, failed = sum(outcome.counts.values()), len(outcome.failures)
    lines.append(f"{total} cases, {total - failed} held, {failed} failed")
    lines += [f"left out here: {fault}: {why}" for fault, why in outcome.left_out.items()]
    return "\n".join(lines)
