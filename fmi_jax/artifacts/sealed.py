"""Sealed files: JSON that carries a checksum of its own content.

`run.json`, `result.json` and the manifests of checkpoints decide what a network says and what a
table shows, so a digit that has changed in one must not go unseen. They are never edited, not on
purpose either: another setting is another run.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmi_jax import atomic
from fmi_jax.artifacts import older
from fmi_jax.errors import UserError

SEAL = "seal"
"""Key of the checksum of all other keys."""

AS_WRITTEN = (
    "expected the file as it was written, since it cannot be edited: put a copy of it back, or run"
    " again in another folder"
)
"""Way out of a damaged file of a run."""


DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Whatever reading a damaged file may raise."""


class Changed(ValueError):
    """A file that is not what its seal says: damaged, or edited."""


def write(path: Path, values: Mapping[str, Any], **options: Any) -> None:
    """Write JSON values with their seal, atomically; `options` as of `json.dumps`."""
    values = json.loads(json.dumps(values))  # as they are read: tuples are lists, keys are words
    atomic.write_json(path, {**values, SEAL: atomic.json_sha256(values)}, **options)


def read(path: Path, known: int, *, since: int | None = None) -> dict[str, Any]:
    """Read the values of a JSON file and check its seal and its format.

    Args:
      path: file to read.
      known: format number that this version writes.
      since: first format that has a seal; None: files of this kind have none.

    Raises:
      UserError: a later version wrote it.
      DAMAGE: it cannot be read, holds no JSON object, or not what was written.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise TypeError(f"expected a JSON object, not {type(values).__name__}")
    seal = values.pop(SEAL, None)
    if seal is not None and seal != atomic.json_sha256(values):
        raise Changed("its checksum differs")
    number = older.format_of(values, known, path)
    if seal is None and since is not None and number >= since:
        raise Changed("its checksum is missing")
    return values


@contextlib.contextmanager
def reading(path: Path, what: str, way_out: str = AS_WRITTEN) -> Iterator[None]:
    """Turn `DAMAGE` that is raised in the block into one message.

    Args:
      path: file that is read.
      what: words for its kind ("the record of a run").
      way_out: words for the state that was expected, and the command that leads there.

    Raises:
      UserError: the file is not `what`.
    """
    try:
        yield
    except DAMAGE as error:
        words = "" if isinstance(error, Changed) else f"{type(error).__name__}: "
        raise UserError(f"{path} is not {what} ({words}{error}); {way_out}.") from error
