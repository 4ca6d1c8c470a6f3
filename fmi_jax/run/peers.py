"""Watch over the other processes of a run: when one is lost, the rest end, and can be started anew.

Every process writes a count to the store of `jax.distributed` every few seconds, and reads those of
the others. One whose count stands still for `train.lost_after_seconds` is lost. One that fails says
so, and the others end at once: whatever they computed together would wait for ever. jax has such a
watch of its own, which ends the process by SIGABRT and without a message of ours; it is set to come
later, but for the loss of process 0, which holds the store: that is caught on the way.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from fmi_jax import guard
from fmi_jax.run import runtime

LOST = 75
"""Exit code of a process that ends because another was lost (`EX_TEMPFAIL` of sysexits)."""

_KEY = "fmi_jax/alive/"
_DONE, _FAILED = "done", "failed"
_GRACE_SECONDS = 5  # in which a process that fails like the others says so itself
_STEPS = 10  # looks at the others, at least, before one counts as lost
_kept: list[Any] = []  # handlers that C calls, which Python must not free


@contextlib.contextmanager
def watched(seconds: int) -> Iterator[None]:
    """Watch over the other processes while the block runs; a process alone is not watched.

    Args:
      seconds: silence after which a process is lost. Then this one ends with one message and exit
        code `LOST`.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    watch = _Watch(seconds)
    watch.start()
    _say_aborts(watch)
    try:
        runtime.configure()  # whatever jax does first settles where it keeps programs
        # Gloo lets the processes wait 30 s for the first of what they compute together, and no
        # moment finds them closer together than this one.
        multihost_utils.sync_global_devices("started")
        yield
    except (Exception, KeyboardInterrupt) as error:
        if guard.exit_code(error) == guard.DEFECT or "DEADLINE_EXCEEDED" in str(error):
            # What is computed together fails at once where a connection breaks, before it is known
            # who was lost. If nobody was, it is a defect indeed.
            watch.join(seconds + 3 * _GRACE_SECONDS)
        watch.tell(_FAILED)
        _leave_after_message(guard.exit_code(error))
        raise
    finally:
        watch.tell(_DONE)


class _Watch:
    """Tells the others that this process is there, and looks whether they are."""

    def __init__(self, seconds: int):
        self.seconds = seconds
        together = _together()
        self._client, self._own = together.client, together.process_id
        self._others = {*range(together.num_processes)} - {self._own}
        self._told = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def tell(self, what: str) -> None:
        """Tell the others how this process has ended; the first word counts."""
        if not self._told.is_set():
            self._told.set()
            with contextlib.suppress(Exception):  # process 0 may have gone
                self._write(what)

    def _write(self, what: str) -> None:
        self._client.key_value_set(f"{_KEY}{self._own}", what, allow_overwrite=True)

    def _look(self) -> None:
        seen = dict.fromkeys(self._others, ("", time.monotonic()))
        count = 0
        while not self._told.wait(min(self.seconds / _STEPS, _GRACE_SECONDS)):
            count += 1
            try:
                self._write(str(count))
                found = dict(self._client.key_value_dir_get(_KEY))
            except Exception:
                continue  # the store is gone: jax notices it, too
            now = time.monotonic()
            for i in self._others:
                what = found.get(f"{_KEY}{i}", "")
                if what == _FAILED:
                    self._end(f"process {i} of the run has failed, and says why itself")
                elif what not in (seen[i][0], ""):
                    seen[i] = (what, now)
                elif what != _DONE and now - seen[i][1] > self.seconds:
                    self._end(f"process {i} of the run has been silent for {self.seconds} s")

    def _end(self, why: str) -> None:
        if not self._told.wait(_GRACE_SECONDS):
            end(why)


def end(why: str) -> None:
    """End this process at once, whatever its threads wait for."""
    message = (
        f"error: {why}: expected every process to last as long as the run. This one ends, too; what"
        " has been saved is intact, and the same command on every host goes on from there.\n"
    )
    os.write(sys.stderr.fileno(), message.encode())
    os._exit(LOST)


def _leave_after_message(code: int) -> None:
    """Have the process end without a farewell to the others, who may be waiting for it."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)  # runs before what jax has registered


def _say_aborts(watch: _Watch) -> None:
    """Say so where jax aborts the process because process 0, which all talk to, is gone."""
    host, _, port = str(_together().coordinator_address).rpartition(":")

    def handle(number: int) -> None:
        for _ in range(3):
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError:
                watch.join(_GRACE_SECONDS)
                end("process 0 of the run is gone, or cannot be reached")
            time.sleep(1)

    # Python's own handlers run in the main thread, which may wait for ever.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
    _kept.append(handler)


# What follows is all that reaches into jax's private modules.


def _together() -> Any:
    """What jax knows of the processes that have met: its client, the coordinator, their number."""
    from jax._src import distributed

    return distributed.global_state
