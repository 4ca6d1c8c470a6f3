"""Stopping a run on request: the first SIGTERM, SIGINT or SIGUSR1 asks, the second one kills.

On a TPU Google's notice of maintenance asks, too, which comes before the SIGTERM.
"""

import contextlib
import os
import signal
import threading
import urllib.request
from types import FrameType

import jax
from jax.experimental import multihost_utils

from fmi_jax import parallel

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_NOTICE = "computeMetadata/v1/instance/maintenance-event"
_NOTICE_SECONDS = 10.0  # from one look to the next


class Stopped(SystemExit):
    """Raised when a run was stopped on request after saving; the process exits with code 143."""

    def __init__(self, step: int):
        super().__init__(143)
        self.step = step


class StopRequest:
    """Context manager that listens for stop signals; call `requested(step)` once per step.

    With several processes all of them get the same answer at the same step: a signal to one
    reaches the others through the preemption service of `jax.distributed`.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, object] = {}
        self._over = threading.Event()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> "StopRequest":
        if parallel.is_alone():
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        else:  # jax hears SIGTERM alone
            others = [s for s in _SIGNALS if s != signal.SIGTERM]
            self._previous = {s: signal.signal(s, self._pass_on) for s in others}
        if jax.default_backend() == "tpu":
            threading.Thread(target=self._await_notice, daemon=True).start()
        return self

    def _await_notice(self) -> None:
        """Wait until the host is to go down for maintenance; ends where nobody gives notice.

        A notice that has been given before is none: a run that starts again after it goes on.
        """
        before = _maintenance_event()
        while before and not self._over.wait(_NOTICE_SECONDS):
            event = _maintenance_event()
            if event.startswith("TERMINATE") and event != before:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step` steps."""
        if parallel.is_alone():
            return self._signal is not None
        return multihost_utils.reached_preemption_sync_point(step)


def _maintenance_event() -> str:
    """What Google's metadata server says of this host ("NONE"); empty if it does not answer."""
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(f"http://{host}/{_NOTICE}")
    request.add_header("Metadata-Flavor", "Google")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), direct.open(request, timeout=5) as answer:
        return answer.read(100).decode(errors="replace").strip()
    return ""
