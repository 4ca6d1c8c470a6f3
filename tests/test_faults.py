"""The fault campaign: it meets every command with every fault, and sees what should not be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from faults.commands import LEFT_OUT, SCENARIOS, unaccounted
from faults.injections import INJECTIONS
from faults.invariants import differences, repeated, said, snapshot, strays
from faults.planning import FAULTS, case, pairs
from faults.processes import Ended, Started, at_work, kill_all, left_behind

MESSAGE = "error: the disk is full.\n"


def test_every_registered_command_is_disturbed_or_says_why_not() -> None:
    assert not unaccounted()
    assert all(LEFT_OUT.values())
    names = [scenario.name for scenario in SCENARIOS]
    assert len(names) == len(set(names))
    made = [path for scenario in SCENARIOS for path in scenario.makes]
    assert len(made) == len(set(made))


def test_a_seed_says_every_case_and_all_pairs_come_before_any_comes_twice() -> None:
    every = pairs()
    cases = [case(3, number) for number in range(len(every))]
    assert cases == [case(3, number) for number in range(len(every))]
    assert cases != [case(4, number) for number in range(len(every))]
    met = {(each.scenario.name, each.fault) for each in cases}
    assert met == {(scenario.name, fault) for scenario, fault in every}
    assert {name for name, _ in met} == {scenario.name for scenario in SCENARIOS}
    assert {fault for _, fault in met} == set(FAULTS) == set(INJECTIONS)
    assert all(each.begin in each.scenario.begins for each in cases)


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        (Ended(0, "report: run/report.html\n", "", 1), ""),
        (Ended(1, "", f"note: a folder\n{MESSAGE}", 1), ""),
        (Ended(-2, "", "Traceback (most ...\nKeyboardInterrupt\n", 1), ""),
        (Ended(-9, "", "", 1, hung=True), "hung"),
        (Ended(70, "", "error: this is a defect of fmi_jax, report it\n", 1), "exit code 70"),
        (Ended(0, "failed: this is a defect of fmi_jax\n", "", 1), "defect"),
        (Ended(1, "", f"Traceback (most ...\nOSError\n{MESSAGE}", 1), "traceback"),
        (Ended(-2, "", "Traceback\n in guarded\nKeyboardInterrupt\n", 1), "traceback"),
        (Ended(1, "", MESSAGE * 2, 1), "2 messages"),
        (Ended(1, "", "", 1), "without a message"),
        (Ended(0, "", MESSAGE, 1), "exit code 0"),
        (Ended(137, "", "", 1), "exit code 137"),
    ],
)
def test_what_a_command_says_is_judged(ended: Ended, wrong: str) -> None:
    found = [*said(ended, {0, 1, -signal.SIGINT})]
    assert any(wrong in each for each in found) if wrong else not found, found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run leaves it, as far as the campaign looks."""
    folder = tmp_path / "run"
    save(folder, np.arange(7.0))
    (folder / "log.txt").write_text("step 1/2\nreport: run/report.html\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2}\n')
    (folder / "predictions.csv").write_text("id,a\n")
    values = {"seed": 0, "seconds": {"training": 2.0}, "started": "today"}
    (folder / "result.json").write_text(json.dumps(values))
    return folder


def save(folder: Path, kernel: np.ndarray) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoints" / "2" / "model", {"kernel": kernel}, force=True)


def wrong(run: Path, before: dict[str, str]) -> list[str]:
    return [*differences(before, snapshot(run.parent, ["run"])), *repeated(run)]


def test_parameters_are_compared_bit_by_bit(run: Path) -> None:
    before = snapshot(run.parent, ["run"])
    save(run, np.arange(7.0))  # other files, the same numbers
    assert not wrong(run, before)
    save(run, np.nextafter(np.arange(7.0), 9.0))
    (found,) = wrong(run, before)
    assert found.startswith("run/checkpoints/2/model differs")


def test_what_is_missing_changed_or_left_behind_is_found(run: Path) -> None:
    before = snapshot(run.parent, ["run"])
    values = {"seed": 0, "seconds": {"training": 3.0}, "started": "tomorrow"}
    (run / "result.json").write_text(json.dumps(values))
    assert not wrong(run, before)  # only the clock has changed
    (run / "result.json").write_text(json.dumps(values | {"seed": 1}))
    (run / "predictions.csv").unlink()
    (run / ".result.json.tmp").touch()
    (run / "checkpoints" / "3").mkdir()
    (run / "report.html").touch()
    found = " ".join(wrong(run, before))
    assert "run/result.json differs" in found
    assert "run/predictions.csv is missing" in found
    assert "run/.result.json.tmp is left behind" in found
    assert "run/checkpoints/3/ is left behind" in found


def test_what_lies_beside_is_found(run: Path) -> None:
    assert not [*strays(run.parent, ["run"])]
    (run.parent / ".run.partial").mkdir()
    (run.parent / "data").mkdir()
    assert [*strays(run.parent, ["run", "data/squares"])] == [".run.partial is left behind"]


def test_what_was_done_twice_is_found(run: Path) -> None:
    assert not [*repeated(run)]
    for name in ("log.txt", "metrics.jsonl"):
        (run / name).write_text((run / name).read_text() * 2)
    assert [*repeated(run)] == ["log.txt: the cell ended 2 times", "metrics.jsonl: steps [1, 1]"]


PROGRAM = """
import os, datetime, pathlib, time
print(time.time(), datetime.datetime.now().year)
pathlib.Path("a").write_text("1")
os.rename("a", "b")
os.mkdir("c")
"""


def disturbed(tmp_path: Path, **faults: object) -> tuple[Ended, list[str]]:
    here = tmp_path / "here"
    here.mkdir()
    asked = {"within": "main", "mark": str(tmp_path / "mark"), **faults}
    ended = Started([sys.executable, "-c", PROGRAM], here, faults=asked).wait(60)
    return ended, sorted(path.name for path in here.iterdir())


def test_a_process_is_killed_before_the_change_that_is_asked_for(tmp_path: Path) -> None:
    ended, left = disturbed(tmp_path, at=3, action="SIGKILL", count=str(tmp_path / "count"))
    assert (ended.code, left) == (-signal.SIGKILL, ["b"])


def test_a_disk_is_full_from_the_change_on_that_is_asked_for(tmp_path: Path) -> None:
    ended, left = disturbed(tmp_path, at=1, action="ENOSPC", count=str(tmp_path / "count"))
    assert (ended.code, left) == (1, [])
    assert "No space left on device" in ended.err


def test_changes_are_counted_and_the_clock_jumps(tmp_path: Path) -> None:
    count, day = tmp_path / "count", 86400
    ended, left = disturbed(tmp_path, count=str(count), clock=[0, 400 * day])
    assert (ended.code, left, count.read_text()) == (0, ["b", "c"], "main 1\nmain 2\nmain 3\n")
    now, year = ended.out.split()
    assert float(now) > time.time() + 399 * day
    assert int(year) > time.gmtime().tm_year


def test_what_hangs_is_killed_and_what_is_left_at_work_is_found(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    asleep = "import time; time.sleep(600)"
    ended = Started([sys.executable, "-c", asleep], here).wait(1)
    assert (ended.code, ended.hung) == (-signal.SIGKILL, True)
    options = "stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True"
    leaves = f"import subprocess, sys; subprocess.Popen(['sleep', '600'], {options})"
    assert not Started([sys.executable, "-c", leaves], here).wait(60).hung
    assert len(left_behind(here, 0.1)) == 1
    kill_all(here)
    assert not at_work(here)


@pytest.mark.slow
def test_five_minutes_of_the_campaign_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--minutes", "5", "--seed", "18"],
        cwd=runs.ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
