"""Work dealt out to processes of its own, which may be killed without a silent loss.

The workers are fresh interpreters: nothing is forked from a process that may hold an accelerator
or threads, and the program that calls is not imported again, whatever it is (a script, a
notebook). A worker whose parent is gone ends with the item it was at.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_SERVE = (
    "import sys; sys.path[:] = {path!r}; from fmi_jax.data.preparing.pool import serve; serve({fd})"
)

# glibc gives the memory of every large image back to the system and fetches it anew, page by
# page; with these it keeps it, and PNG photographs are read in 0.8 of the time.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


class WorkerLostError(Exception):
    """A worker process ended by itself, or was ended from outside.

    Attributes:
      task: index of the task it was at.
      items: how many items of that task had arrived; it was at work on the next.
      reason: how it ended ("killed by SIGKILL").
    """

    def __init__(self, task: int, items: int, reason: str):
        super().__init__(f"a worker process was lost: {reason}")
        self.task = task
        self.items = items
        self.reason = reason


class _Failed(NamedTuple):
    error: Exception


class _Done(NamedTuple):
    pass


def run_tasks(
    function: Callable[[T], Iterable[R]], tasks: Sequence[T], processes: int
) -> Iterator[tuple[int, R]]:
    """Yield every item of `function(task)` with the index of its task, as they come.

    The items of one task come in order, those of several tasks mixed.

    Args:
      function: importable by its name (or a `functools.partial` of one that is).
      tasks: with everything that a worker needs to know; picklable.
      processes: how many workers; 1: no process is started, the work is done here.

    Raises:
      WorkerLostError: a worker was killed. The others are stopped.
      Exception: what `function` raised.
    """
    if processes == 1:
        for index, task in enumerate(tasks):
            yield from ((index, item) for item in function(task))
        return
    waiting = iter(enumerate(tasks))
    workers = [_Worker(function) for _ in range(min(processes, len(tasks)))]
    try:
        busy: dict[Any, _Worker] = {w.connection: w for w in workers if w.give(next(waiting, None))}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]
                message = worker.receive()
                if isinstance(message, _Failed):
                    raise message.error
                if not isinstance(message, _Done):
                    yield worker.task, message
                elif not worker.give(next(waiting, None)):
                    del busy[connection]
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process and what it is at."""

    def __init__(self, function: Callable[[Any], Iterable[Any]]):
        self.connection, theirs = multiprocessing.Pipe()
        program = _SERVE.format(path=sys.path, fd=theirs.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=_ENVIRONMENT | os.environ,
        )
        theirs.close()
        self.task = 0
        self.items = 0
        self._send(function)

    def give(self, task: tuple[int, Any] | None) -> bool:
        """Hand over the next task; False if there is none."""
        if task is None:
            return False
        self.task, self.items = task[0], 0
        self._send(task[1])
        return True

    def receive(self) -> Any:
        """The next message."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None
        self.items += 1
        return message

    def stop(self) -> None:
        """End the process, at work or not."""
        self.connection.close()
        self.process.terminate()
        self.process.wait()

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def _lost(self) -> WorkerLostError:
        code = self.process.wait()
        reason = f"ended with exit code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        return WorkerLostError(self.task, self.items, reason)


def serve(descriptor: int) -> None:
    """The life of a worker: a function, then tasks, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    connection = Connection(descriptor)
    try:
        function = connection.recv()
        while True:
            task = connection.recv()
            try:
                for item in function(task):
                    connection.send(item)
                message = _Done()
            except (BrokenPipeError, EOFError):
                raise
            except Exception as error:
                error.add_note(f"In a worker process:\n{traceback.format_exc()}")
                message = _Failed(error)
            connection.send(message)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return  # the parent is done, or gone
