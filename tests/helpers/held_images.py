"""Reading that stops at an image, in whatever process, until a pipe beside it lets it go on."""

import os
from pathlib import Path
from unittest import mock

from fmi_jax.data.preparing import reading, shard


def hold(image: Path) -> Path:
    """Make the pipe that is read before the image; opening it for writing waits for the reader."""
    pipe = image.with_suffix(".hold")
    os.mkfifo(pipe)
    return pipe


def write_shards(shards, **options):
    """Stand in for `shard.write_shards`, which it calls."""
    with mock.patch.object(shard, "read_row", _read_row):
        yield from shard.write_shards(shards, **options)


def scan_rows(rows, **options):
    """Stand in for `reading.scan_rows`, which it calls."""
    with mock.patch.object(reading, "read_row", _read_row):
        yield from reading.scan_rows(rows, **options)


def _read_row(row, num_classes, channels, read_row=shard.read_row):
    pipe = row.path.with_suffix(".hold")
    if pipe.exists():
        pipe.read_bytes()
    return read_row(row, num_classes, channels)
