"""Two processes that train together: one is lost, or is told to stop, and a rerun goes on."""

import signal
import socket
import subprocess
from pathlib import Path

import pytest
import runs

from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.run import peers

SECONDS = 30


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    runs.draw_squares(folder / "raw")
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    path = runs.write_config(folder, folder / "data")
    path.write_text(path.read_text().replace("max_steps = 24", "max_steps = 60"))
    return path


def start_both(config: Path, workdir: Path) -> list[subprocess.Popen[str]]:
    """Start a run on two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = (
        *(f"--config={config}", f"--workdir={workdir}", f"--coordinator_address={address}"),
        *("--num_processes=2", f"--config.train.lost_after_seconds={SECONDS}"),
        *("--config.backbone.drop_path=0.0", "--config.augment.jitter_probability=0.0"),
    )
    return [runs.start(*arguments, f"--process_id={i}") for i in range(2)]


def until_step(process: subprocess.Popen[str], count: int) -> int:
    """Wait until a process has told of `count` steps; returns the last one."""
    assert process.stdout is not None
    while count:
        line = process.stdout.readline()
        assert line, process.communicate()
        steps = runs.steps_in(line)
        count -= len(steps)
    return steps[0]


def test_the_others_end_with_a_message_and_a_rerun_resumes(config: Path, tmp_path: Path) -> None:
    workdir, step = tmp_path / "run", 0
    for victim, message in (
        (1, f"process 1 of the run has been silent for {SECONDS} s"),
        (0, "process 0 of the run is gone, or cannot be reached"),
    ):
        both = start_both(config, workdir)
        reached = until_step(both[0], 7)
        assert reached > step
        step = reached - 3  # since the last checkpoint
        both[victim].kill()
        code, _, err = runs.finish(both[1 - victim])
        runs.finish(both[victim])
        assert code == peers.LOST, err
        assert err.splitlines()[-1].startswith(f"error: {message}: expected"), err
        assert "Traceback" not in err
        assert not (workdir / "result.json").exists()

    # The signal of a batch system comes to one process, or to all; both save and stop.
    both = start_both(config, workdir)
    assert until_step(both[0], 5) > step
    both[1].send_signal(signal.SIGUSR1)
    for process in both:
        code, _, err = runs.finish(process)
        assert code == 143, err
