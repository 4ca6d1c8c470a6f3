"""Errors that are the user's to mend: shown as one message, without a traceback."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONG_LIST = 30  # more names than this hide the likely one
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(Exception):
    """Something outside the program is wrong: a file, a record, a checkpoint. Exit code 1.

    The message says what was wrong, what was expected and the nearest valid choice.
    """

    exit_code = 1


class UsageError(UserError):
    """A wrong flag, name or config value. Exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Turn a file that cannot be read or written in the block into one message.

    Args:
      folder: place of the files, named where the error names none.

    Raises:
      UserError: the disk is full, a file stands where a folder should, or the like.
    """
    try:
        yield
    except OSError as error:
        if (fault := disk_fault(error, folder)) is None:
            raise
        raise UserError(fault) from error


def disk_fault(error: BaseException, folder: Path | None = None) -> str | None:
    """Words for an error of the disk or of a file, and what to do; None for any other.

    Args:
      error: error that was raised. A full disk is looked for in its causes, too, as libraries
        raise errors of their own.
      folder: place of the files, named where the error names none.
    """
    full = [e for e in _causes(error) if isinstance(e, OSError) and e.errno in _FULL]
    if full or "No space left on device" in str(error):
        error, what = (*full, error)[0], "the disk is full, or a quota of it"
        way_out = "free space"
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        what, way_out = os.strerror(error.errno), "mend it, or move it away"
    else:
        return None
    place = getattr(error, "filename", None) or folder
    where = "" if place is None else f"{place}: "
    return (
        f"{where}{what}. What has been saved is intact: {way_out}, then give the same command"
        " again."
    )


def _causes(error: BaseException) -> list[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """The error for a `name` that is not among `choices`, with the closest ones first.

    Args:
      kind: kind of thing that was looked up, in the singular ("backbone", "config field").
      name: name that was asked for.
      choices: the valid names.
    """
    valid = sorted(choices)
    hint = did_you_mean(name, valid)
    if hint and len(valid) > _LONG_LIST:
        return UsageError(f"unknown {kind} {name!r}.{hint}")
    return UsageError(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid)}.")


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """A question that names the valid choices close to `name`, or nothing where none is."""
    # A field without its section is too short beside the whole name to be called close to it.
    whole = [choice for choice in valid if choice.endswith(f".{name}")]
    close = whole or difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def is_plain(text: str) -> bool:
    """Test for text without control characters, and without those that UTF-8 cannot hold."""
    return not _CONTROL.search(text)


def printable(text: str) -> str:
    """Text for a terminal: control characters but tabs and line ends are written as escapes.

    Names that come out of files could otherwise move the cursor, or recolour what is around them.
    """
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in "\n\t" else repr(found[0])[1:-1], text
    )
