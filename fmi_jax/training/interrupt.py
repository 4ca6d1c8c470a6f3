"""Stopping a run on request: the first SIGTERM, SIGINT or SIGUSR1 asks, the second one kills."""

import signal
from types import FrameType

from jax.experimental import multihost_utils

from fmi_jax import parallel

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def __enter__(self) -> "StopRequest":
        if parallel.is_alone():
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step` steps."""
        if parallel.is_alone():
            return self._signal is not None
        return multihost_utils.reached_preemption_sync_point(step)
