"""Writing files so that they are complete or absent; checksums of files; JSON and CSV."""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; the file moves to `path` when the block ends without an error.

    It is flushed to disk before it gets its name, so `path` never holds a half-written file.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with whole_file(path) as draft:
        draft.write_bytes(content)


def write_json(path: str | Path, values: Any, *, indent: int = 2, **options: Any) -> None:
    """Write values as JSON with a line end, atomically; `options` as of `json.dumps`."""
    write_bytes(path, (json.dumps(values, indent=indent, **options) + "\n").encode())


def csv_bytes(rows: Iterable[Iterable[Any]], end: str = "\n") -> bytes:
    """Format rows as CSV in UTF-8; `end` ends each line."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue().encode()


def json_sha256(values: Any) -> str:
    """SHA-256 checksum of JSON values, whatever the order of their keys, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """SHA-256 checksum of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
