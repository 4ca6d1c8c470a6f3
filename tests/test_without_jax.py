"""What must not wait for JAX, or comes before it is imported."""

import subprocess
import sys

import pytest
import runs

REFUSE = """
import importlib.abc, os, sys
from pathlib import Path
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("jax", "jaxlib", "flax"), name
sys.meta_path.insert(0, Refuse())
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REFUSE + program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
        env=runs.environment(),
    )


CALL = "from fmi_jax.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confg=digits", "--workdir=runs/x"], "Did you mean '--config'?"),
        (["--workdir=runs/x"], "--config is missing"),
        (["--config=digits", "--config.train.seed=1"], "--workdir is missing"),
        (["--config=digit", "--workdir=runs/x"], "there is no config 'digit'"),
        (["--config=digits", "--workdir=runs/x", "y"], "unexpected argument 'y'"),
        (["--config=digits", "--workdir=runs/x", "--process_id=y"], "--process_id=y"),
        ([], "--workdir is missing"),
        (["--config=digits", "--workdir="], "--workdir is missing"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message):
    done = run(CALL, "run", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_where_fields_are_explained():
    done = run(CALL, "run", "--help")
    assert done.returncode == 0, done.stderr
    assert "fmi-jax protocols" in done.stdout


def test_a_worker_takes_its_cores():
    program = """
class Taken(Exception):
    pass
def take(process, cores):
    raise Taken(process, *cores)
os.sched_setaffinity = take
from fmi_jax.study import worker
try:
    worker.main(Path("folder"), "3,5")
except Taken as taken:
    print(*taken.args)
"""
    assert run(program).stdout.split() == ["0", "3", "5"]
