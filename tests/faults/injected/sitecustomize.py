"""Disturbs the process that Python starts, as the variable `FAULTS` says; imported by Python.

`FAULTS` is JSON:
  under: folder whose changes count: files opened to be written, renamed, linked, removed.
  within: "main" or "worker" (a process that a command starts); only such a process is disturbed.
  mark: file that only one process can make: that one is disturbed.
  at: number of the change before which it happens, from 1.
  action: a signal ("SIGKILL"), or an error ("ENOSPC") of that change and, where the disk is full
    or read-only, of all later ones that need room.
  count: file to which the kind of process and the number of changes is added at each change.
  clock: [n, s]: from the n-th look at the clock on, the time is s seconds further.
  file_limit: largest size of a file in bytes.
  bound: true: permissions hold for root, too.
"""

import ctypes
import datetime
import errno
import json
import os
import resource
import signal
import sys
import time

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {  # event: position of the path, and of the descriptor of its folder
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.truncate": (0, None),
}
_DROPPED = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: by them nothing is read-only for root
_PR_CAPBSET_DROP = 24
_NEED_ROOM = ("open", "os.link", "os.symlink", "os.mkdir")


class Watch:
    """Counts changes of files, and acts at one of them."""

    def __init__(self, asked):
        self.asked, self.count, self.failing, self.inside = asked, 0, False, False

    def __call__(self, event, args):
        if self.inside or (event != "open" and event not in _CHANGES):
            return
        self.inside = True
        try:
            path = self.path(event, args)
        finally:
            self.inside = False
        if path is None:
            return
        self.count += 1
        if "count" in self.asked:
            self.write()
        if self.failing or self.count == self.asked.get("at"):
            self.act(event, path)

    def path(self, event, args):
        """Path that is changed below the folder; None: there is none."""
        if event == "open":
            path, _, flags = args
            folder = None
            if isinstance(path, int) or path is None or not flags & _WRITES:
                return None
        else:
            place, of_folder = _CHANGES[event]
            path = args[place]
            folder = args[of_folder] if of_folder is not None else None
            if isinstance(path, int):
                return None
        path = os.fsdecode(path)
        if folder is not None and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        return path if path.startswith(self.asked["under"] + os.sep) else None

    def act(self, event, path):
        """Do what is asked for."""
        action = self.asked["action"]
        if not self.failing:
            self.inside = True
            try:
                os.close(os.open(self.asked["mark"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:  # another process has been disturbed
                self.count += 1 << 40
                return
            finally:
                self.inside = False
        if action.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, action))
            return
        code = getattr(errno, action)
        self.failing = code != errno.EIO
        if code == errno.EIO or code == errno.EROFS or event in _NEED_ROOM:
            raise OSError(code, os.strerror(code), path)

    def write(self):
        """Add the count to the file that is asked for; a process may end without a last word."""
        self.inside = True
        try:
            with open(self.asked["count"], "a") as file:
                file.write(f"{kind()} {self.count}\n")
        finally:
            self.inside = False


class Clock:
    """The time, which jumps."""

    def __init__(self, after, seconds):
        self.left, self.seconds = after, seconds
        self.time, self.time_ns = time.time, time.time_ns

    def jump(self):
        self.left -= 1
        return self.seconds if self.left < 0 else 0

    def now(self):
        return self.time() + self.jump()

    def now_ns(self):
        return self.time_ns() + self.jump() * 10**9


def inject(clock):
    """Replace every way in which Python code asks what time it is."""

    class Kind(type):
        def __instancecheck__(cls, instance):
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass):
            return issubclass(subclass, real)

    real = datetime.datetime

    class Jumping(real, metaclass=Kind):
        @classmethod
        def now(cls, tz=None):
            return real.fromtimestamp(clock.now(), tz)

        @classmethod
        def utcnow(cls):
            return real.fromtimestamp(clock.now(), datetime.UTC).replace(tzinfo=None)

    time.time, time.time_ns, datetime.datetime = clock.now, clock.now_ns, Jumping


def kind():
    """Whether this process is that of a command, or one that it started."""
    started = " ".join(sys.orig_argv)
    of_worker = "fmi_jax.study.worker" in started or "preparing.pool" in started
    return "worker" if of_worker else "main"


def begin():
    asked = json.loads(os.environ["FAULTS"])
    if asked.pop("bound", False):
        for capability in _DROPPED:
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.environ["FAULTS"] = json.dumps(asked)
        os.execv(sys.executable, sys.orig_argv)  # from here on they are gone
    if "file_limit" in asked:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_limit"],) * 2)
    if "clock" in asked:
        inject(Clock(*asked["clock"]))
    if "count" in asked or ("at" in asked and asked["within"] == kind()):
        sys.addaudithook(Watch(asked))


if "FAULTS" in os.environ:
    begin()
