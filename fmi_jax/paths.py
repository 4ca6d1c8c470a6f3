"""Paths that a user gives: what is read must be a file, and what is written must have a place.

Opening a pipe waits for ever, and a device such as /dev/zero never ends, so `check_file` comes
before every file of a user is opened; `check_output` comes before the work whose result goes there.
"""

import contextlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from fmi_jax import atomic
from fmi_jax.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def fault_of_file(path: Path) -> str | None:
    """Words for why a path is no file that can be read, to follow its name; None if it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:  # a NUL
        return "is missing: its name has a NUL"
    kind = _KINDS.get(stat.S_IFMT(mode))
    return None if kind is None else f"is {kind}"


def check_file(path: Path) -> None:
    """Refuse what is no file: nothing there, a folder, a pipe, a device, a link to itself.

    Raises:
      UserError: names the path.
    """
    if fault := fault_of_file(path):
        raise UserError(f"{path} {fault}: expected a file.")


def check_output(
    path: Path, inputs: Collection[Path] = (), begins: tuple[bytes, ...] = (b"",)
) -> None:
    """Refuse a place that the result of the work ahead cannot be written to.

    Args:
      path: file to write.
      inputs: files that are read for it, none of which it may replace.
      begins: first bytes of such results; a file that begins otherwise is not replaced.

    Raises:
      UserError: it is one of the inputs, holds something else, is no regular file, or its folder is
        missing or cannot be written to.
    """
    if any(_same(path, each) for each in inputs):
        raise UserError(f"{path} is one of the inputs: expected another file to write.")
    if path.exists() or path.is_symlink():
        if fault := fault_of_file(path):
            raise UserError(f"{path} {fault}: expected a new file, or one to replace.")
        with path.open("rb") as file:
            start = file.read(max(map(len, begins)))
            if start and not start.startswith(begins):
                raise UserError(
                    f"{path} holds something else, which is not replaced: expected a new file, or"
                    " one that such a call wrote."
                )
    _try_place(path.parent, path.name)


def check_output_folder(folder: Path, inputs: Collection[Path] = ()) -> None:
    """Refuse a folder that the files of the work ahead cannot be written to, there or not.

    Args:
      folder: folder to write into.
      inputs: files that are read for it; none may lie in the folder, where it could be replaced.

    Raises:
      UserError: an input lies there, it is no folder, or it cannot be written to.
    """
    if inside := [path for path in inputs if _same(folder, path.parent)]:
        raise UserError(
            f"{folder} holds the input {inside[0].name}: expected another folder to write to."
        )
    _try_place(folder, "trial")


class _Tried(Exception):
    """Ends a trial before its file gets a name."""


def _try_place(folder: Path, name: str) -> None:
    """Write the draft of a file that is never made, which a killed trial leaves to the next one.

    A folder that is missing is tried in the nearest one above it that is there.
    """
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)
    try:
        with atomic.whole_file(there / f"{name}~") as draft:
            draft.write_bytes(bytes(4096))
            raise _Tried
    except _Tried:
        return
    except OSError as error:
        raise UserError(
            f"nothing can be written to {folder} ({error.strerror}): expected a folder that can be"
            " written to."
        ) from error


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
