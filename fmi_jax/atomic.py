"""Writing files so that they are complete or absent; checksums of files; JSON and CSV."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; the file moves to `path` when the block ends without an error.

    It is flushed to disk before it gets its name, so `path` never holds a half-written file. The
    draft of a writer that was killed is overwritten by the next one.

    Raises:
      OSError: the draft cannot be made there, or `path` is no regular file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    draft = path.with_name(f".{path.name}.tmp")
    held = _hold(draft)
    if held is None:
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _hold(draft: Path) -> int | None:
    """Make a draft and lock it; None if another writer holds it, or the disk knows no locks."""
    try:
        held = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:  # another user's, or nothing can be written there at all
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What was opened may be a file that got its name just now.
        if os.path.samestat(os.fstat(held), os.stat(draft)):
            os.ftruncate(held, 0)
            return held
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
            draft.unlink(missing_ok=True)
    os.close(held)
    return None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with whole_file(path) as draft:
        draft.write_bytes(content)


def write_json(path: str | Path, values: Any, *, indent: int = 2, **options: Any) -> None:
    """Write values as JSON with a line end, atomically; `options` as of `json.dumps`."""
    write_bytes(path, (json.dumps(values, indent=indent, **options) + "\n").encode())


_FORMULA = re.compile(r"'*[=+\-@\t\r].", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)


def csv_bytes(rows: Iterable[Iterable[Any]], end: str = "\n") -> bytes:
    """Format rows as CSV in UTF-8; `end` ends each line.

    Text that a spreadsheet would compute, such as "=1+1", gets an apostrophe in front, which makes
    it text there; `csv_lines` takes it away.
    """
    text = io.StringIO(newline="")
    safe = ([_as_text(value) for value in row] for row in rows)
    csv.writer(text, lineterminator=end).writerows(safe)
    return text.getvalue().encode()


def csv_lines(text: Iterable[str]) -> list[dict[str, str]]:
    """Invert `csv_bytes`: the rows below the first one, by the columns that it names.

    Raises:
      csv.Error: the quoting is broken, or a row has more or fewer fields than the first one.
    """
    columns, *rows = [
        [field[1:] if field[:1] == "'" and _FORMULA.match(field) else field for field in row]
        for row in csv.reader(text, strict=True)
        if row
    ] or [[]]
    if any(len(row) != len(columns) for row in rows):
        raise csv.Error("a row has more or fewer fields than there are columns")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _as_text(value: Any) -> Any:
    if isinstance(value, int | float) or not _FORMULA.match(text := str(value)):
        return value
    return value if _NUMBER.fullmatch(text) else f"'{text}"


def json_sha256(values: Any) -> str:
    """SHA-256 checksum of JSON values, whatever the order of their keys, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """SHA-256 checksum of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
