"""Cache of arrays that take long to compute, kept between reports."""

import hashlib
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fmi_jax import atomic


class Cache:
    """Cache folder with one file for each result.

    A file's name includes a hash of everything the result was computed from, so it is never out of
    date. Threads may share a cache.

    Args:
      folder: folder of the files; created if it is missing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._locks: dict[Path, threading.Lock] = {}

    def get(
        self, title: str, made_of: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return the result of `compute`, from the cache if it is there.

        Args:
          title: a word or two for the file name.
          made_of: everything that decides the result.
          compute: function that returns arrays by name.
        """
        digits = hashlib.sha256(made_of.encode()).hexdigest()[:20]
        path = self._folder / f"{title}-{digits}.npz"
        with self._locks.setdefault(path, threading.Lock()):  # several settings may need it
            try:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile):  # missing or damaged
                found = dict(compute())
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic.whole_file(path) as draft, draft.open("wb") as file:
                np.savez(file, allow_pickle=False, **found)  # type: ignore[arg-type]
            return found
