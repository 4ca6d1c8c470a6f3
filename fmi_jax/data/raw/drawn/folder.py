"""Folder of a drawn raw data set, written atomically and marked as not real."""

import contextlib
import fcntl
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fmi_jax.errors import UserError
from fmi_jax.paths import check_output_folder

MARKER = "SYNTHETIC.txt"
"""Name of the file that marks a raw data set as drawn; everything made from it says so."""

FORMAT = 1
"""Number of the drawing programs; raised when one of them draws other bytes from the same seed."""


@contextmanager
def drawn_folder(folder: Path, note: str) -> Iterator[Path | None]:
    """Yield the folder to draw into, or None if the same set is already drawn.

    `folder` appears at once, when the block has ended without an error.

    Args:
      folder: new or empty folder, or one drawn before with the same note.
      note: description of the drawing and its seed, which decide the bytes; written as `MARKER`.

    Raises:
      UserError: the folder holds something else.
    """
    if _is_there(folder, note):
        yield None
        return
    check_output_folder(folder)
    partial = folder.with_name(folder.name + ".partial")
    with _alone_in(partial):
        if _is_there(folder, note):  # another process has drawn it meanwhile
            yield None
            return
        yield partial
        (partial / MARKER).write_text(_numbered(note))
        partial.replace(folder)


def _numbered(note: str) -> str:
    return f"{note}Format {FORMAT}.\n"


def _is_there(folder: Path, note: str) -> bool:
    """Whether a folder holds what would be drawn; `UserError` if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER
    # Markers without a number are of format 1.
    if marker.is_file() and marker.read_text() in (_numbered(note), note):
        return True
    raise UserError(
        f"{folder} is not empty and does not hold what would be drawn"
        f" ({note.splitlines()[0]} Format {FORMAT}.); expected an empty or a new folder."
        + " Delete it to have it drawn again."
        * marker.is_file()
    )


@contextmanager
def _alone_in(partial: Path) -> Iterator[None]:
    """Make an empty folder for this process alone, which others wait for, and remove it at last."""
    lock = None
    while lock is None:
        partial.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(partial, os.O_RDONLY)
            try:
                with contextlib.suppress(OSError):  # not every disk has locks on folders
                    fcntl.flock(opened, fcntl.LOCK_EX)
                # What was opened may have got its name meanwhile, or be gone.
                if os.path.samestat(os.fstat(opened), os.stat(partial)):
                    lock = opened
            finally:
                if lock is None:
                    os.close(opened)
    try:
        for left in partial.iterdir():  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def draw_once(
    note: str, *, count: int
) -> Callable[[Callable[[Path, int, int], None]], Callable[..., None]]:
    """Decorate a function `(folder, count, seed)` that draws a raw data set into an empty folder.

    The result, `(folder, count=..., seed=0)`, leaves a folder unchanged that already holds the very
    set that it would draw; `folder` and errors are those of `drawn_folder`.

    Args:
      note: description of the drawing, with "{count}" and "{seed}" in it; see `drawn_folder`.
      count: number of images where the caller names none.
    """

    def decorate(write: Callable[[Path, int, int], None]) -> Callable[..., None]:
        @functools.wraps(write)
        def draw(folder: Path, count: int = count, seed: int = 0) -> None:
            with drawn_folder(folder, note.format(count=count, seed=seed)) as new:
                if new is not None:
                    write(new, count, seed)

        return draw

    return decorate


def is_drawn(source: Path) -> bool:
    """Test whether raw data at `source` (a folder, or a table in one) were drawn by a program.

    Several readers take the folder inside the one that was drawn as well, so its parent counts too.
    """
    folder = source if source.is_dir() else source.parent
    return any((place / MARKER).is_file() for place in (folder, folder.absolute().parent))
