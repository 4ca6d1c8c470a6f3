"""Scalars of a run: what TensorBoard and the log are given."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

from fmi_jax.artifacts.scalars import MetricWriter


def events(folder: Path) -> Iterator:
    """The events in a folder, file by file."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            yield Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length


def test_a_resumed_run_replaces_what_it_wrote_beyond_its_checkpoint(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, 0, active=True)
    writer.write_scalars(1, {"train/loss": 0.5, "train/x": math.nan})
    writer.write_scalars(2, {"train/loss": 0.25})
    writer.write_speed(2, {"speed/steps": 7.0})
    found = list(events(tmp_path / "tensorboard"))  # a reader sees them while the run goes on
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    expected = [(1, "train/loss", 0.5), (2, "train/loss", 0.25), (2, "speed/steps", 7.0)]
    assert scalars == expected
    assert all(event.wall_time > 0 for event in found)
    writer.close()
    before = {path: path.read_bytes() for path in (tmp_path / "tensorboard").iterdir()}

    for path in before:  # names tell seconds apart
        path.rename(path.with_name(f"{path.name}.before"))
    again = MetricWriter(tmp_path, 1, active=True)
    again.write_scalars(2, {"train/loss": 0.75})
    again.close()
    found = list(events(tmp_path / "tensorboard"))
    [*_, restart, last] = found
    assert restart.step == 2  # from here on earlier files count no more
    assert restart.session_log.status == restart.session_log.START
    assert (last.step, last.summary.value[0].simple_value) == (2, 0.75)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "train/loss": 0.5, "train/x": None},
        {"step": 2, "train/loss": 0.75},
    ]
