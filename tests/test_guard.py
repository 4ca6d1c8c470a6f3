"""What is raised that no code explains: one message, an exit code, a file with the traceback."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs

from fmi_jax.errors import UserError, on_disk, printable
from fmi_jax.guard import DEFECT, guarded


def raised(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def main() -> None:
        raise error

    code = guarded(main)
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return code, said


def test_a_defect_names_a_file_that_holds_the_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = raised(ZeroDivisionError("odd\nnumbers"), capsys)
    assert code == DEFECT
    (log,) = tmp_path.iterdir()
    assert said.startswith(f"error: this is a defect of fmi_jax, report it with {log}: ZeroDiv")
    assert "odd numbers (test_guard.py:" in said
    assert "raise error\nZeroDivisionError" in log.read_text()


def test_a_defect_is_shown_where_no_file_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")

    def main() -> None:
        raise ZeroDivisionError

    assert guarded(main) == DEFECT
    said = capsys.readouterr().err
    assert "raise ZeroDivisionError\n" in said
    assert said.splitlines()[-1].startswith("error: this is a defect of fmi_jax, report it with")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_no_defect(capsys: pytest.CaptureFixture[str], wrapped: bool) -> None:
    error: Exception = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights/x")
    if wrapped:
        cause, error = error, RuntimeError("a library failed")
        error.__cause__ = cause
    code, said = raised(error, capsys)
    assert code == 1
    assert said.startswith("error: weights/x: the disk is full, or a quota of it. What has been")
    with pytest.raises(UserError) as refused, on_disk(Path("runs")):
        raise error.__cause__ or error
    assert said == f"error: {refused.value}\n"  # a run says the same


def test_what_the_system_refuses_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = raised(PermissionError(errno.EACCES, "x", "a.csv"), capsys)
    assert (code, said) == (
        1,
        "error: a.csv: Permission denied. What has been saved is intact: mend it, or move it away,"
        " then give the same command again.\n",
    )
    code, said = raised(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), capsys)
    assert code == 1
    assert "expected a connection" in said


def test_memory_that_is_not_there_is_said_in_gibibytes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MemoryError) as host:
        np.zeros(2**45)
    for error, asked in (
        (host.value, "2.62e+05 GiB were asked for; the machine has "),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3221225472 bytes."),
            ": 3 GiB were asked for; ",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: while trying to allocate 37.25GiB."),
            ": 37.2 GiB were asked for; ",
        ),
    ):
        code, said = raised(error, capsys)
        assert code == 1
        assert asked in said
        assert "optim.accumulate=2" in said


def test_memory_that_a_limit_withholds_is_no_defect(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MemoryError) as host:
        np.zeros(2**45)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * 2**30, 4 * 2**30))
    for error in (
        host.value,
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libx.so: failed to map segment from shared object: Cannot allocate memory"),
    ):
        code, said = raised(error, capsys)
        assert code == 1
        assert said.startswith("error: out of memory")
        assert "this process may use 3 GiB (ulimit -v). Training takes less" in said
    code, said = raised(RuntimeError("can't start new thread"), capsys)
    assert code == 1
    assert "(ulimit -u)" in said


def test_processes_that_waited_too_long_for_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = raised(RuntimeError("UNKNOWN: Gloo: DEADLINE_EXCEEDED: GetKeyValue()"), capsys)
    assert code == 1
    assert "waited too long for each other" in said


def test_no_escape_sequence_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = raised(UserError("tensor \x1b[31mred\x9b1m \udce9"), capsys)
    assert said == "error: tensor \\x1b[31mred\\x9b1m \\udce9\n"
    assert printable("a\tb\nç 漢") == "a\tb\nç 漢"


def ended(program: str) -> tuple[int, str]:
    """Exit code of a program of its own, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
        env=runs.environment(),
    )
    return done.returncode, done.stderr


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_heeded() -> None:
    program = """
import gc, signal, sys, time
from fmi_jax.guard import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGINT)
def main():
    gc.callbacks.append(callback)
    gc.collect()
    for _ in range(600):
        time.sleep(0.1)
sys.exit(guarded(main))
"""
    assert ended(program) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "arguments", [("weights_convert", "inspect", "x"), ("fmi_jax.cli", "doctor")]
)
def test_an_interrupt_while_jax_is_imported_is_heeded(arguments: tuple[str, ...]) -> None:
    program = f"""
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = {list(arguments)!r}
runpy.run_module({arguments[0]!r}, run_name="__main__", alter_sys=True)
"""
    assert ended(program) == (130, "interrupted\n")


def test_what_cannot_be_printed_is_one_message() -> None:
    program = (
        "import sys; from fmi_jax.guard import guarded; sys.exit(guarded(lambda: print('done')))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=runs.ROOT,
            env={k: v for k, v in runs.environment().items() if k != "PYTHONUNBUFFERED"},
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: the disk is full")


def test_every_exit_code_is_in_the_documentation() -> None:
    import fmi_jax.guard

    page = (runs.ROOT / "docs" / "launch.md").read_text()
    section = page.split("## Exit codes\n")[1].split("\n## ")[0]
    codes = re.findall(r"\b\d+\b", fmi_jax.guard.__doc__ or "")
    assert set(codes) <= set(re.findall(r"^\| (\d+) \|", section, re.MULTILINE))
