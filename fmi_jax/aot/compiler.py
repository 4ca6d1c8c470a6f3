"""Starts the compiling process in the environment with the compilers, and sends it programs."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fmi_jax.aot.program import Program
from fmi_jax.errors import UserError

ENVIRONMENT = "FMI_JAX_AOT"
ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT = ROOT / ".venv-aot"
_LAST_LINES = 20  # lines of a failed process's output to show


class Compiler:
    """Process that compiles programs for one chip. A context manager; leaving it ends the process.

    Args:
      name: name of the chip ("h200").

    Raises:
      UserError: the compilers are not installed.
    """

    def __init__(self, name: str):
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python()), "-m", "fmi_jax.aot.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def report(self, program: Program) -> dict[str, Any]:
        """Compile a program; returns its report (`report.report`), or `error` and `exit_code`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(program.to_json()) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._said.seek(0)
        said = "".join(self._said.readlines()[-_LAST_LINES:])
        return {"error": f"the compiling process ended with code {code}:\n{said}", "exit_code": 1}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if kind is not None:
            self._process.terminate()
        self._process.wait()
        self._said.close()


def python() -> Path:
    """Path of the Python that has the compilers: that of the environment that `FMI_JAX_AOT` names,
    of `.venv-aot` beside the package, or this one.

    Raises:
      UserError: none of them has the compilers.
    """
    given = os.environ.get(ENVIRONMENT, "")
    folder = Path(given) if given else DEFAULT
    found = folder / "bin" / "python"
    if found.exists():
        return found
    if not given and all(importlib.util.find_spec(n) for n in ("libtpu", "jax_cuda12_plugin")):
        return Path(sys.executable)
    raise UserError(
        f"there are no compilers for TPUs and GPUs in {folder}: expected an environment made by"
        f" `make .venv-aot`, or {ENVIRONMENT}=FOLDER with one in which"
        " `pip install '.[aot]'` was run."
    )
