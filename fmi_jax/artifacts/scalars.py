"""Where scalars go: a durable JSONL file, TensorBoard, and the console.

Method names are those of `clu.metric_writers.MetricWriter`, whose own module needs TensorFlow.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.progress

from fmi_jax import atomic
from fmi_jax.artifacts.history import FILE_NAME, row_of

log = logging.getLogger(__name__)


class MetricWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a run folder.

    A row of `metrics.jsonl` is `{"step": 10, "train/loss": 0.7, ...}`, NaN and infinity as null
    (TensorBoard leaves them out). It holds
    nothing that depends on the machine's speed, so equal runs write equal files. A resumed run
    first drops what it wrote beyond its checkpoint: every step stands there once. Damaged lines are
    set aside in `metrics.damaged`, with a warning.

    Args:
      folder: the run folder.
      start_step: steps done by the checkpoint that the run resumes from.
      active: True if this process writes (process 0 does).
    """

    def __init__(self, folder: Path, start_step: int, *, active: bool):
        self._active = active
        if not active:
            return
        path = folder / FILE_NAME
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [(line, row_of(line)) for line in lines]
        damaged = [line for line, row in rows if row is None and line.endswith(b"\n")]
        if damaged:
            aside = path.with_suffix(".damaged")
            log.warning("%d damaged line(s) of %s are set aside in %s", len(damaged), path, aside)
            with aside.open("ab") as file:
                file.writelines(damaged)
        kept = [line for line, row in rows if row is not None and row["step"] <= start_step]
        atomic.write_bytes(path, b"".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = _Events(folder / "tensorboard", start_step + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append the scalars of one step to both files."""
        if not self._active:
            return
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **dict.fromkeys(scalars), **finite}) + "\n")
        self._events.write(step, finite)

    def write_speed(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append scalars that depend on the machine's speed: to TensorBoard only."""
        if self._active:
            self._events.write(step, scalars)
            self._events.flush()

    def flush(self) -> None:
        """Make what was written survive a crash of the machine."""
        if self._active:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        if self._active:
            self.flush()
            self._file.close()
            self._events.close()


class _Events:
    """Writes TensorBoard events as they come.

    The library's own writer does so in a thread, and waits for ever once the disk was full.

    Args:
      folder: folder of the event files.
      purge_step: first step of earlier files that counts no more.
    """

    def __init__(self, folder: Path, purge_step: int):
        self._library = _tensorboard()
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = self._library.event_file_writer.EventsWriter(str(folder / "events"))
        proto = self._library.proto.event_pb2
        restart = proto.SessionLog(status=proto.SessionLog.START)
        self._add(step=purge_step, session_log=restart)

    def _add(self, **fields: Any) -> None:
        event = self._library.proto.event_pb2.Event(wall_time=time.time(), **fields)
        self._writer.write_event(event)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append scalars of a step."""
        for name, value in scalars.items():
            self._add(step=step, summary=self._library.summary.scalar(name, value))

    def flush(self) -> None:
        """Write what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _tensorboard() -> Any:
    """Import tensorboardX without torch, which takes seconds and which scalars do not need."""
    without = "torch" not in sys.modules
    if without:
        sys.modules["torch"] = None  # type: ignore[assignment]  # its import fails
    try:
        import tensorboardX
        import tensorboardX.event_file_writer
        import tensorboardX.proto.event_pb2
        import tensorboardX.summary
    finally:
        if without:
            del sys.modules["torch"]
    return tensorboardX


class ProgressReport:
    """Steps/s, images/s, time left and loss: a bar on a terminal, plain lines elsewhere.

    Args:
      total_steps: length of the run.
      start_step: step that this process starts from.
      batch_size: images per step.
      active: True if this process reports.
    """

    def __init__(self, total_steps: int, start_step: int, batch_size: int, *, active: bool):
        self.total_steps = total_steps
        self.batch_size = batch_size
        self._active = active
        self._since = (time.monotonic(), start_step)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("training"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(),
            disable=not (active and sys.stdout.isatty()),
        )
        self._task = self._bar.add_task(
            "training", total=total_steps, completed=start_step, status=""
        )
        self._bar.start()

    def update(self, step: int, loss: float) -> dict[str, float]:
        """Show the state after `step` steps; returns `steps_per_second`, `images_per_second`."""
        now = time.monotonic()
        then, step_then = self._since
        self._since = (now, step)
        rate = (step - step_then) / max(now - then, 1e-9)
        images = rate * self.batch_size
        status = f"loss {loss:.4f}  {rate:.2f} steps/s  {images:.0f} images/s"
        self._bar.update(self._task, completed=step, status=status)
        if self._active and self._bar.disable:
            left = (self.total_steps - step) / rate if rate else float("inf")
            print(f"step {step}/{self.total_steps}  {status}  {left:.0f} s left", flush=True)
        return {"steps_per_second": rate, "images_per_second": images}

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self._bar.disable:
            self._bar.console.print(line, highlight=False)
        elif self._active:
            print(line, flush=True)

    def restart_clock(self, step: int) -> None:
        """Leave what happened since the last `update` (a validation, a save) out of the rates."""
        self._since = (time.monotonic(), step)

    def close(self) -> None:
        """Take the bar down."""
        self._bar.stop()
