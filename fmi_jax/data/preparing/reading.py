"""Reads every image of a raw data set once, on several processes."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

from fmi_jax.cores import available_cores
from fmi_jax.data.preparing.pool import WorkerLostError, run_tasks
from fmi_jax.data.preparing.selection import Row
from fmi_jax.data.preparing.shard import read_row
from fmi_jax.errors import UserError

# This module runs in worker processes, so it imports neither jax nor modules that import it.

T = TypeVar("T")
R = TypeVar("R")

_ROWS_PER_TASK = 16
_ROWS_PER_PROCESS = 100  # with fewer, starting another process (2 s) does not pay


class Scanned(NamedTuple):
    """Checksums of an image that was read.

    Attributes:
      sha256: checksum of its files.
      pixels_sha256: checksum of its pixels at full size; equal for two files with one picture.
    """

    sha256: str
    pixels_sha256: str


def scan_images(
    rows: Sequence[Row],
    *,
    num_classes: int,
    channels: int,
    description: str,
    processes: int = 0,
) -> list[Scanned | UserError]:
    """Read and decode every image, as preparation would, with a bar on the terminal.

    Args:
      rows: rows to read.
      num_classes: number of classes that masks may have.
      channels: 3 for colour, 1 for grey.
      description: text of the bar.
      processes: number of processes; 0: one per core, fewer for few images.

    Returns:
      For each row its checksums, or the reason that it cannot be used.

    Raises:
      UserError: a process was killed; the message names what it was reading.
    """
    tasks = [rows[i : i + _ROWS_PER_TASK] for i in range(0, len(rows), _ROWS_PER_TASK)]
    found: list[list[Scanned | UserError]] = [[] for _ in tasks]
    for task, scanned in read_images(
        functools.partial(scan_rows, num_classes=num_classes, channels=channels),
        tasks,
        tasks,
        description=description,
        processes=processes,
    ):
        found[task].append(scanned)
    return [scanned for task in found for scanned in task]


def read_images(
    function: Callable[[T], Iterable[R]],
    tasks: Sequence[T],
    rows: Sequence[Sequence[Row]],
    *,
    description: str,
    processes: int,
) -> Iterator[tuple[int, R]]:
    """Run tasks whose items are images, with a bar on the terminal; see `run_tasks`.

    Args:
      function, tasks: arguments of `run_tasks`; each item stands for one image.
      rows: rows of each task.
      description: text of the bar.
      processes: number of processes; 0: one per core, fewer for few images.

    Raises:
      UserError: a process was killed; the message names what it was reading.
    """
    total = sum(map(len, rows))
    processes = processes or max(1, min(len(available_cores()), total // _ROWS_PER_PROCESS))
    try:
        yield from _tracked(run_tasks(function, tasks, processes), description, total)
    except WorkerLostError as lost:
        row = rows[lost.task][min(lost.items, len(rows[lost.task]) - 1)]
        raise UserError(
            f"a process that prepares images was lost ({lost.reason}) while it read {row.place}."
            " Expected it to finish; if the memory was full, take fewer --processes."
            " The same command goes on where this run stopped."
        ) from None


def scan_rows(
    rows: Sequence[Row], num_classes: int, channels: int
) -> Iterator[Scanned | UserError]:
    """Read and decode images in order, without keeping them; see `scan_images`."""
    for row in rows:
        image = read_row(row, num_classes, channels)
        if isinstance(image, UserError):
            yield image
            continue
        digest = hashlib.sha256(f"{image.image.mode} {image.image.size}".encode())
        digest.update(image.image.tobytes())
        found = Scanned(image.sha256, digest.hexdigest())
        del image  # free it before the next is read
        yield found


def _tracked(images: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Pass `images` on, and show count, speed and remaining time on stderr if it is a terminal."""
    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _Rate(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield from bar.track(images, total=total, description=description)


class _Rate(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "")
