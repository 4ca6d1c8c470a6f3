"""Drivers: every cell once, whoever runs it and however often they are killed."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import runs
import short_runs

from fmi_jax import cli
from fmi_jax.errors import UserError
from fmi_jax.fields import as_dict
from fmi_jax.study import (
    driver as driver_module,
    ledger as ledger_module,
    plan as plan_module,
    slurm,
)
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.registry import find_study
from fmi_jax.study.state import State

STAND_IN = Path(__file__).parent.parent / "helpers" / "study_stand_in.py"

GRID = """
from fmi_jax.config import ExperimentConfig
from fmi_jax.study.spec import Setting, Study

DECAYS = {decays!r}


def settings():
    for i, decay in enumerate(DECAYS):
        config = ExperimentConfig(protocol="finetune")
        config.data.split = "upstream"
        config.optim.weight_decay = decay
        config.train.epochs = 10 + i
        config.backbone.name = "deit_nano"
        yield Setting(at={{"dataset": "synthetic", "model": f"m{{i}}"}}, config=config)


STUDY = Study(name="grid", title="A grid", settings=lambda: tuple(settings()), rows=("model",),
              rates={rates!r}, seeds={seeds!r})
"""

PROGRAM = (
    "import sys; from fmi_jax import cli; from fmi_jax.study import driver, plan;"
    "driver.WORKER = (sys.argv[1],); sys.exit(cli.main(['study', 'run', *sys.argv[2:]]))"
)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "WORKER", (str(STAND_IN),))


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a grid; returns the arguments that run it."""

    def write(decays: tuple[float, ...], rates: tuple[float, ...] = (), seeds: int = 1):
        path = tmp_path / "grid.py"
        path.write_text(GRID.format(decays=decays, rates=rates, seeds=seeds))
        return [str(path), "--root", str(tmp_path / "root")]

    return write


def study(*arguments: str) -> int:
    return cli.main(["study", *arguments])


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(STAND_IN), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=runs.environment(),
    )


def starts(root: Path) -> list[list[str]]:
    path = root / "starts.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(found: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_the_best_rate_gets_the_other_seeds_and_a_second_call_does_nothing(grid, tmp_path, capsys):
    arguments = grid((0.0, 0.01), rates=(1e-4, 1e-2, 1e-3), seeds=3)
    assert study("plan", *arguments) == 0
    assert "2 settings, 10 cells in the end: 6 open; 4 more when" in capsys.readouterr().out
    assert study("run", *arguments, "--jobs", "2") == 0
    out = capsys.readouterr().out
    assert "10 done" in out
    assert f"report: fmi-jax report grid --root {tmp_path / 'root'}" in out
    cells = [json.loads(p.read_text()) for p in (tmp_path / "root").glob("cells/*/cell.json")]
    counts = Counter(cell["config"]["optim"]["learning_rate"] for cell in cells)
    assert counts == {1e-4: 2, 1e-2: 6, 1e-3: 2}
    assert study("run", *arguments) == 0
    assert len(starts(tmp_path / "root")) == 10
    assert study("status", *arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["m0", "5", "0", "0", "5"] in rows


def test_cells_that_share_a_program_do_not_start_together(grid, tmp_path):
    """The first compiles it for the others."""
    root = tmp_path / "root"
    with start([*grid((0.4, 0.4), rates=(1e-3, 1e-2)), "--jobs", "2"]) as process:
        wait_for(lambda: len(starts(root)) == 2)
        (root / "go").touch()
        assert process.wait() == 0
    cells = [json.loads((root / "cells" / at[0] / "cell.json").read_text()) for at in starts(root)]
    assert len(cells) == 4
    assert sorted(cell["config"]["train"]["epochs"] for cell in cells[:2]) == [10, 11]


def test_a_failed_cell_is_marked_and_the_rest_goes_on(grid, tmp_path, capsys):
    arguments = grid((0.1, 0.2, 0.3, 0.0))
    assert study("run", *arguments) == 1
    out, err = capsys.readouterr()
    assert "1 done, 3 failed" in out
    assert "m: the loss is not finite." not in out
    for reason in ("the loss is not finite.", "ended by SIGKILL (mostly: memory ran out)"):
        assert f": {reason}\n  log: " in out
    assert "RuntimeError: out of memory" in out
    assert err.startswith("error: not every cell could be run.")
    assert "Traceback" not in out + err
    root = tmp_path / "root"
    failures = [json.loads(path.read_text()) for path in root.glob("cells/*/failed.json")]
    assert sorted(failure["exit_code"] for failure in failures) == [-9, 1, 1]
    assert study("run", *arguments) == 1
    assert len(starts(root)) == 4  # nothing is run again
    capsys.readouterr()
    assert study("status", *arguments) == 0
    assert "the loss is not finite." in capsys.readouterr().out
    assert study("run", *arguments, "--retry-failed") == 1
    assert len(starts(root)) == 7


def test_a_rate_that_fails_does_not_stop_the_search(grid, tmp_path, capsys):
    arguments = grid((0.0,), rates=(1e-3, 1e-2), seeds=2)
    root = tmp_path / "root"
    plan = plan_module.make_plan(find_study(arguments[0]))
    cells = list(plan.all_cells(plan.settings).values())
    ledger = Ledger(root)
    high = next(cell for cell in cells if (cell.learning_rate, cell.seed) == (1e-2, 0))
    claim = ledger.claim(high)
    assert claim is not None
    claim.fail("it diverged", 1)
    claim.release()
    assert study("run", *arguments) == 1
    done = {c.learning_rate for c in cells if ledger.state(c.id) is State.DONE}
    assert done == {1e-3}
    assert "2 done, 1 failed" in capsys.readouterr().out


def test_two_drivers_run_no_cell_twice(grid, tmp_path):
    arguments = grid(tuple(range(1, 8)), seeds=2)
    drivers = [start([*arguments, "--jobs", "3"]) for _ in range(2)]
    assert [runs.finish(driver)[0] for driver in drivers] == [0, 0]
    counts = Counter(name for name, *_ in starts(tmp_path / "root"))
    assert len(counts) == 14
    assert {*counts.values()} == {1}


def test_a_killed_driver_leaves_its_cell_running_and_no_other_takes_it(grid, tmp_path, capsys):
    arguments, root = grid((0.4,)), tmp_path / "root"
    first = start(arguments)
    wait_for(lambda: bool(list(root.glob("cells/*/ready"))))
    first.kill()
    first.wait()
    capsys.readouterr()
    assert study("run", *arguments) == 0  # it is at work, in a process of its own
    assert "1 running" in capsys.readouterr().out
    assert study("status", *arguments) == 0
    assert "running  synthetic-deit_nano-finetune" in capsys.readouterr().out
    (pid,) = (int(pid) for _, pid, *_ in starts(root))
    os.kill(pid, signal.SIGKILL)  # and now it is not: the lock goes with the process
    (root / "go").touch()
    wait_for(lambda: Ledger(root).state(next((root / "cells").iterdir()).name) is State.OPEN)
    assert study("run", *arguments) == 0
    assert [name for name, *_ in starts(root)] == [next((root / "cells").iterdir()).name] * 2
    assert "1 done" in capsys.readouterr().out


def test_a_driver_that_is_stopped_has_its_cells_save_and_the_next_resumes(grid, tmp_path):
    arguments, root = grid((0.4, 0.0)), tmp_path / "root"
    first = start(arguments)
    wait_for(lambda: bool(list(root.glob("cells/*/ready"))))
    first.send_signal(signal.SIGTERM)
    code, out, err = runs.finish(first)
    assert code == 143, err
    assert "stopped; the same command resumes" in out
    assert len(list(root.glob("cells/*/saved"))) == 1
    assert not list(root.glob("cells/*/failed.json"))
    assert len(starts(root)) == 1  # and starts nothing more
    (root / "go").touch()
    assert study("run", *arguments) == 0
    assert len(list(root.glob("cells/*/result.json"))) == 2


def test_a_driver_that_fails_has_its_cells_save(grid, tmp_path, monkeypatch, capsys):
    arguments, root = grid((0.4,)), tmp_path / "root"

    def tick(self, logs):
        if list(root.glob("cells/*/ready")):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(driver_module.Progress, "tick", tick)
        assert study("run", *arguments) == 1
    assert "Read-only file system" in capsys.readouterr().err
    (cell,) = (root / "cells").iterdir()
    assert (cell / "saved").exists()
    assert Ledger(root).state(cell.name) is State.OPEN
    (root / "go").touch()
    assert study("run", *arguments) == 0
    assert (cell / "result.json").exists()


def test_slots_share_the_cores_and_each_has_its_gpu(grid, tmp_path):
    arguments, root = grid((0.0, 0.01)), tmp_path / "root"
    assert study("run", *arguments, "--gpus", "3,5") == 0
    gpus = {gpu: cores for _, _, gpu, cores in starts(root)}
    assert gpus.keys() <= {"3", "5"}
    shares = [slot.cores for slot in driver_module.make_slots(1, ["3", "5"])]
    assert sorted(core for share in shares for core in share) == sorted(os.sched_getaffinity(0))
    for jobs, gpus, message in ((2, ["0"], "one of them"), (0, [], "1 or more")):
        with pytest.raises(UserError, match=message):
            driver_module.make_slots(jobs, gpus)


def test_what_is_missing_is_said_and_the_rest_is_run(grid, tmp_path, capsys):
    arguments = grid((0.0, 0.01))
    changed = [*arguments, "--set", "data.name=aptos2019", "--data-dir", str(tmp_path / "data")]
    assert study("plan", *changed) == 0
    planned = capsys.readouterr().out
    assert study("run", *changed) == 1
    out, err = capsys.readouterr()
    for text in (planned, out):
        assert "not ready (2 cells): " in text
        assert "fmi-jax prepare aptos2019" in text
    assert starts(tmp_path / "root") == []
    assert "not every cell could be run" in err


def test_a_file_system_without_locks_is_refused(tmp_path):
    with (
        mock.patch.object(ledger_module.fcntl, "flock", side_effect=OSError("not supported")),
        pytest.raises(UserError, match=r"without flock.* NFS 4"),
    ):
        Ledger(tmp_path)
    with (
        mock.patch.object(ledger_module.fcntl, "flock"),
        pytest.raises(UserError, match="without flock"),
    ):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slice", "model"], "--slice model: expected NAME=VALUE"),
        (["--slice", "model=m7"], "unknown model for --slice 'm7'"),
        (["--shard", "2"], "--shard=2: expected i/n"),
        (["--set", "train.epoch=3"], "Did you mean 'train.epochs'"),
        (["--rates", "fast"], "expected numbers such as 1e-4,1e-3, not 'fast'"),
        (["--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["--slurm", "partition=gpu"], "--slurm without --slurm-workers"),
    ],
)
def test_wrong_usage_is_one_message(grid, capsys, arguments, message):
    assert study("run", *grid((0.0,)), *arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out


def test_real_cells_share_what_is_compiled(tmp_path, monkeypatch, capsys):
    """Two seeds in processes of their own: the second compiles neither weights nor steps anew."""
    monkeypatch.undo()
    config = short_runs.prepare_squares(tmp_path)
    path = tmp_path / "grid.py"
    path.write_text(
        "import json\n"
        "from fmi_jax.config import from_dict\n"
        "from fmi_jax.study.spec import Setting, Study\n"
        f"CONFIG = {json.dumps(as_dict(config))!r}\n"
        "STUDY = Study(name='squares', title='Squares', rows=('model',), rates=(), seeds=2,\n"
        "    settings=lambda: (Setting(at={'dataset': 'squares', 'model': 'nano'},\n"
        "                              config=from_dict(json.loads(CONFIG))),))\n"
    )
    cache = tmp_path / "xla"
    for name, value in (runs.environment() | {"JAX_COMPILATION_CACHE_DIR": str(cache)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    # Keep what compiles fast, too: how fast it does must not decide what is there.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    arguments = [str(path), "--root", str(tmp_path / "root"), "--data-dir", config.data.data_dir]
    assert study("run", *arguments, "--seeds", "1") == 0
    compiled = {entry.name for entry in cache.glob("*-cache")}
    assert len([name for name in compiled if name.startswith("jit_step")]) == 2  # and evaluation
    assert len([name for name in compiled if name.startswith("jit_draw")]) == 1
    assert study("run", *arguments) == 0
    assert {entry.name for entry in cache.glob("*-cache")} == compiled
    results = [json.loads(p.read_text()) for p in (tmp_path / "root").glob("cells/*/result.json")]
    assert sorted(result["seed"] for result in results) == [0, 1]
    assert len({result["best"]["value"] for result in results} | {0}) >= 2
    assert all(p.stat().st_size for p in (tmp_path / "root").glob("cells/*/report.html"))
    assert "2 done" in capsys.readouterr().out


def test_a_job_of_slurm_saves_and_is_queued_again_when_it_has_to_go(grid, tmp_path):
    arguments, root = grid((0.4, 0.4)), tmp_path / "root"
    job = slurm.Job(cli.parse(["study", "run", *arguments]))
    queued = []

    def has_to_go() -> None:
        wait_for(lambda: bool(list(root.glob("cells/*/ready"))))
        queued.append(job.checkpoint())  # waits until the cell has saved
        queued.append(list(root.glob("cells/*/saved")))

    timer = threading.Thread(target=has_to_go)
    timer.start()
    assert job() == 143
    timer.join()
    assert len(queued[1]) == 1
    (root / "go").touch()
    again = pickle.loads(pickle.dumps(queued[0].function))
    assert again() == 0
    assert len(list(root.glob("cells/*/result.json"))) == 2


SBATCH = """#!/bin/sh
# Runs the tasks of the array at once, as Slurm does on its nodes.
for script; do :; done
cp "$script" {folder}/submitted.sh
for task in 0 1; do
  SLURM_JOB_ID=4$task SLURM_ARRAY_JOB_ID=4 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 \
  SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here \
    sh "$script" >{folder}/out$task 2>&1 &
done
echo "Submitted batch job 4"
"""
SRUN = """#!/bin/sh
while [ "$1" != {python} ]; do shift; done
exec "$@"
"""
SITE = """
from fmi_jax.study import driver
driver.WORKER = ({stand_in!r},)
"""


def test_jobs_are_submitted_to_slurm_as_an_array_that_shares_the_work(
    grid, tmp_path, monkeypatch, capsys
):
    arguments, root = grid((0.0, 0.01, 0.02)), tmp_path / "root"
    for name, text in (
        ("sbatch", SBATCH.format(folder=tmp_path)),
        ("srun", SRUN.format(python=sys.executable)),
        ("squeue", "#!/bin/sh\n"),
        ("sitecustomize.py", SITE.format(stand_in=str(STAND_IN))),
    ):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bin"), prepend=os.pathsep)
    flags = ["--slurm-workers", "2", "--slurm", "partition=gpu", "--slurm", "timeout_min=90"]
    assert study("run", *arguments, *flags) == 0
    out = capsys.readouterr().out
    assert "submitted 2 jobs: 4_0, 4_1" in out
    wait_for(lambda: len(list(root.glob("cells/*/result.json"))) == 3)
    script = (tmp_path / "submitted.sh").read_text()
    for line in ("--partition=gpu", "--time=90", "--array=0-1", "--job-name=fmi-grid"):
        assert f"#SBATCH {line}" in script
    assert len(starts(root)) == 3
    monkeypatch.setenv("PATH", "/nowhere")
    assert study("run", *arguments, *flags) == 2
    assert "--slurm: " in capsys.readouterr().err
