"""Locates the image file of each row of a raw data set, none of them outside the image root."""

import collections
import functools
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from fmi_jax.data.preparing import images, masks
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import RawDataset
from fmi_jax.errors import UserError, is_plain

_SUFFIXES = {"an image": images.SUFFIXES, "a mask": masks.SUFFIXES}


class Files(NamedTuple):
    """Image file and mask files of a row."""

    image: Path
    masks: tuple[Path, ...]


def locate_files(raw: RawDataset) -> list[Files]:
    """Find the paths of each row's files, whether they exist or not.

    Raises:
      UserError: an id is empty, not text or used twice, or a path leads out of the image root
        (absolute, `..`, a symbolic link) or is not the name of an image or mask file. All are
        listed.
    """
    problems = Problems(raw.table)
    ids = collections.Counter(example.id for example in raw.examples)
    root = Path(os.path.realpath(raw.image_root))  # unlike `resolve` it takes a link to itself
    if not root.is_dir():
        raise UserError(f"{raw.image_root} is not a folder; expected the images of {raw.table}.")

    @functools.cache  # a file that holds many images is named in many rows
    def locate(path: str, kind: str) -> tuple[Path, str | None]:
        if fault := _fault(path, kind):
            return root, fault
        if not Path(os.path.realpath(root / path)).is_relative_to(root):
            return root, f"path leads out of {raw.image_root} through a symbolic link"
        return root / path, None

    found = []
    for example in raw.examples:
        if fault := _first(
            {
                "id is empty": not example.id,
                "id has a character that is not text": not is_plain(example.id),
                "id is used more than once": ids[example.id] > 1,
            }
        ):
            problems.add(fault, example.where)
        paths = []
        files = [(example.path, "an image"), *((mask, "a mask") for mask in example.masks)]
        for name, kind in files:
            path, fault = locate(name, kind)
            if fault:
                problems.add(fault, f"{example.where}: {name!r}")
            paths.append(path)
        found.append(Files(paths[0], tuple(paths[1:])))
    problems.raise_if_any()
    return found


def _fault(path: str, kind: str) -> str | None:
    """Explain why `path`, as a table gives it, is no file of a kind under the image root, or None.

    Args:
      path: path of the file.
      kind: kind of file, "an image" or "a mask".
    """
    pure, suffixes = PurePosixPath(path), _SUFFIXES[kind]
    absolute = pure.is_absolute() or bool(PureWindowsPath(path).drive)
    return _first(
        {
            "path is empty": not path,
            "path has a character that is not text": not is_plain(path),
            "path has a backslash, expected '/' between folders": "\\" in path,
            "path is absolute, expected one that starts at the image root": absolute,
            "path has '..', expected one that stays under the image root": ".." in pure.parts,
            f"path is not {kind} file name, expected {', '.join(suffixes)}": (
                pure.suffix.lower() not in suffixes
            ),
        }
    )


def _first(faults: dict[str, bool]) -> str | None:
    """The first fault that is there."""
    return next((fault for fault, there in faults.items() if there), None)
