"""Looking at every row and every image of a raw data set, without writing anything."""

import collections
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fmi_jax.data.images import SUFFIXES, decode_image, resize_image
from fmi_jax.data.problems import Problems
from fmi_jax.data.spec import RawDataset
from fmi_jax.errors import UserError


class Scanned(NamedTuple):
    """One image as it will be stored.

    Attributes:
      pixels: uint8 `[size, size, channels]`.
      file_sha256: of the bytes of its file.
      pixels_sha256: of `pixels`; equal for two files that show the same.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    file_sha256: str
    pixels_sha256: str


def locate_images(raw: RawDataset) -> list[Path]:
    """The file of each row, whether it is there or not.

    Raises:
      UserError: an id is empty, not text or used twice, or a path leads out of the image root
        (absolute, `..`, a symbolic link) or is not the name of an image file. All are listed.
    """
    problems = Problems(raw.table)
    ids = collections.Counter(example.id for example in raw.examples)
    root = raw.image_root.resolve()
    if not root.is_dir():
        raise UserError(f"{raw.image_root} is not a folder; expected the images of {raw.table}.")
    paths = []
    for example in raw.examples:
        if not example.id:
            problems.add("id is empty", example.where)
        elif not _is_plain(example.id):
            problems.add("id has a character that is not text", example.where)
        elif ids[example.id] > 1:
            problems.add("id is used more than once", example.where)
        fault = _fault(example.path)
        path = root / example.path if not fault else root
        if not fault and not path.resolve().is_relative_to(root):
            fault = f"path leads out of {raw.image_root} through a symbolic link"
        if fault:
            problems.add(fault, example.where)
        paths.append(path)
    problems.raise_if_any()
    return paths


def scan_images(
    paths: Iterable[Path], *, channels: int, size: int, threads: int = 0
) -> Iterator[Scanned | UserError]:
    """Read, check and resize images in order, a few at a time on a pool of threads.

    Args:
      paths: image files.
      channels: 3 for colour, 1 for grey.
      size: side in pixels.
      threads: size of the pool; 0: one per CPU core.

    Yields:
      The image, or the error that says why there is none.
    """
    threads = threads or os.cpu_count() or 1
    pending: collections.deque[Future[Scanned | UserError]] = collections.deque()
    # Threads suffice: Pillow, numpy and hashlib release the interpreter lock while they work.
    with ThreadPoolExecutor(threads) as pool:
        try:
            for path in paths:
                pending.append(pool.submit(_scan_image, path, channels, size))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _scan_image(path: Path, channels: int, size: int) -> Scanned | UserError:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return UserError("image file is missing")
    except OSError as error:
        return UserError(f"image file cannot be read ({error.strerror})")
    try:
        pixels = resize_image(decode_image(data, channels=channels), size=size)
    except UserError as error:
        return error
    return Scanned(
        pixels, hashlib.sha256(data).hexdigest(), hashlib.sha256(pixels.tobytes()).hexdigest()
    )


def _is_plain(text: str) -> bool:
    """No control characters, and none that UTF-8 cannot hold (undecodable file names)."""
    return not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in text)


def _fault(path: str) -> str | None:
    """Why `path`, as a table gives it, cannot be taken for an image under the image root."""
    if not path:
        return "path is empty"
    if not _is_plain(path):
        return "path has a character that is not text"
    if "\\" in path:
        return "path has a backslash, expected '/' between folders"
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        return "path is absolute, expected one that starts at the image root"
    if ".." in PurePosixPath(path).parts:
        return "path has '..', expected one that stays under the image root"
    if PurePosixPath(path).suffix.lower() not in SUFFIXES:
        return f"path is not an image file name, expected {', '.join(SUFFIXES)}"
    return None
