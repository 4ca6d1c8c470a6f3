"""Guard around every command: whatever it raises becomes one message and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or config, 70 a defect of fmi_jax, 75 another process of
the run was lost, 130 interrupted with nothing to save, 143 stopped on request after saving.
"""

import _thread
import contextlib
import errno
import os
import re
import resource
import shlex
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fmi_jax.errors import UserError, disk_fault, printable

DEFECT = 70
"""Exit code of a command that raised what it should have explained (`EX_SOFTWARE` of sysexits)."""

_GIB = 2**30
_NO_MEMORY = (
    "RESOURCE_EXHAUSTED",  # XLA's, of a device or of the machine
    os.strerror(errno.ENOMEM),  # also that of a library which could not be loaded
)


def guarded(main: Callable[[], None]) -> int:
    """Run `main` and return its exit code; an error becomes one message on stderr.

    What is neither the user's nor the machine's to mend is called a defect; a file that the message
    names holds the traceback.
    """
    try:
        with _heeded_interrupts():
            main()
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk is explained
    except UserError as error:
        return _failed(str(error), error.exit_code)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if said := _of_the_machine(error):
            return _failed(said, 1)
        return _failed(_defect(error), DEFECT)
    finally:
        _forget_unprinted()
    return 0


def _forget_unprinted() -> None:
    """Drop what cannot be printed; Python would try again at its end, and show a traceback."""
    out = sys.stdout
    if out is None:
        return
    try:
        out.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def exit_code(error: BaseException) -> int:
    """Exit code of a command that raises `error`."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 1 if isinstance(error, Exception) and _of_the_machine(error) else DEFECT


def _failed(message: str, code: int) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _heeded_interrupts() -> Iterator[None]:
    """Interrupt again where a Ctrl-C came in a callback of the garbage collector.

    JAX has such a callback, and Python ignores what a callback raises.
    """
    before = sys.unraisablehook

    def ignored(raised: Any) -> None:
        if issubclass(raised.exc_type, KeyboardInterrupt):
            threading.Timer(0.1, _thread.interrupt_main).start()
        else:
            before(raised)

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = before


def _of_the_machine(error: Exception) -> str | None:
    """Words for an error that the machine caused: no memory, network, room or permission."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return _out_of_memory(text)
    if "DEADLINE_EXCEEDED" in text:
        return (
            "the processes of the run waited too long for each other: expected hosts that are"
            " about equally fast, and no busier than others. The same command on every host goes"
            " on from what has been saved."
        )
    if "can't start new thread" in text:
        return (
            "no thread could be started: expected a higher limit of processes (ulimit -u), or of"
            " memory (ulimit -v)."
        )
    if isinstance(error, ConnectionError):
        return f"{error}: expected a connection. Give the same command again when there is one."
    return disk_fault(error)


def _out_of_memory(text: str) -> str:
    """Words that say what was asked for, and what there is."""
    asked = re.search(r"(\d[\d.]*) ?([KMGT])i?B?\b", text) or re.search(r"(\d+)() bytes", text)
    size = ""
    if asked:
        gib = float(asked[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[asked[2]]
        size = f": {gib / _GIB:.3g} GiB were asked for"
    return (
        f"out of memory{size}; {_memory('RESOURCE_EXHAUSTED' in text)}. Training takes less with"
        " optim.accumulate=2 (or 4, 8 ...) at the same numbers, backbone.remat=True, a smaller"
        " train.batch_size or train.eval_batch_size; the other commands with a smaller --batch-size"
        " or fewer --processes."
    )


def _memory(of_device: bool) -> str:
    """Words for the memory there is, on the first device or on the machine."""
    jax: Any = sys.modules.get("jax")
    with contextlib.suppress(Exception):  # no device tells what it does not know
        if of_device and jax is not None:
            stats = jax.local_devices()[0].memory_stats()
            free = stats["bytes_limit"] - stats["bytes_in_use"]
            return f"the device has {stats['bytes_limit'] / _GIB:.3g} GiB, {free / _GIB:.3g} free"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if not of_device and limit != resource.RLIM_INFINITY:
        return f"this process may use {limit / _GIB:.3g} GiB (ulimit -v)"
    with contextlib.suppress(Exception):  # only Linux has the file
        lines = Path("/proc/meminfo").read_text().splitlines()
        total, free = (
            int(line.split()[1]) * 1024 / _GIB
            for name in ("MemTotal:", "MemAvailable:")
            for line in lines
            if line.startswith(name)
        )
        return f"the machine has {total:.3g} GiB, {free:.3g} free"
    return "there is less"


def _defect(error: Exception) -> str:
    """Write the traceback to a file; returns the message."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {said}{where}"
    full = "".join(traceback.format_exception(error))
    try:
        descriptor, log = tempfile.mkstemp(prefix="fmi_jax-defect-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"python {sys.version}\n{shlex.join(sys.argv)}\n\n{full}")
    except OSError:
        print(printable(full), file=sys.stderr)
        log = "the traceback above"
    return f"this is a defect of fmi_jax, report it with {log}: {what}"
