"""Folder of a drawn raw data set, written atomically and marked as not real."""

import functools
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
    numbered = f"{note}Format {FORMAT}.\n"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        marker = folder / MARKER
        # Markers without a number are of format 1.
        if marker.is_file() and marker.read_text() in (numbered, note):
            yield None
            return
        raise UserError(
            f"{folder} is not empty and does not hold what would be drawn"
            f" ({note.splitlines()[0]} Format {FORMAT}.); expected an empty or a new folder."
            + " Delete it to have it drawn again."
            * marker.is_file()
        )
    partial = folder.with_name(folder.name + ".partial")
    check_output_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        (partial / MARKER).write_text(numbered)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
