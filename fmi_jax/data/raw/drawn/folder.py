"""The folder of a drawn raw data set: it appears complete, and says that it is not real."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmi_jax.errors import UserError

MARKER = "SYNTHETIC.txt"
"""A raw data set beside this file was drawn by a program; everything made of it says so."""


@contextmanager
def drawn_folder(folder: Path, note: str) -> Iterator[Path | None]:
    """Yield the folder to draw into, or None where the same set is already drawn.

    `folder` appears at once, when the block has ended well.

    Args:
      folder: new, empty, or drawn before with the same note.
      note: what is drawn and from which seed, all that decides the bytes; written as `MARKER`.

    Raises:
      UserError: the folder holds something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        marker = folder / MARKER
        if marker.is_file() and marker.read_text() == note:
            yield None
            return
        raise UserError(
            f"{folder} is not empty and does not hold what would be drawn"
            f" ({note.splitlines()[0]}); expected an empty or a new folder."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    (partial / MARKER).write_text(note)
    partial.replace(folder)


def is_drawn(source: Path) -> bool:
    """Whether the raw data at `source` (a folder, or a table in one) were drawn by a program."""
    return ((source if source.is_dir() else source.parent) / MARKER).is_file()
