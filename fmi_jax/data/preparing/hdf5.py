"""Images in an HDF5 file: row `item` of the data set `x`, as PatchCamelyon is published."""

import functools
import os
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import UInt8

from fmi_jax.data.preparing.pixel_limit import check_size
from fmi_jax.errors import UserError

SUFFIXES = (".h5", ".hdf5")
"""Suffixes of HDF5 files."""


def read_item(path: Path, item: int) -> UInt8[np.ndarray, "h w *c"]:
    """Read image number `item` (from 0) of the data set `x` (`[n, h, w]`, or 1 or 3 channels).

    Raises:
      UserError: there is no such image; the message does not name the file. Errors of h5py on a
        missing file and on damaged bytes are not caught.
    """
    images = _open(path, os.getpid())
    channels = images.shape[3:]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in ((), (1,), (3,)):
        raise UserError(
            f"the HDF5 data set 'x' is {images.dtype} {list(images.shape)};"
            " expected uint8 [n, h, w] or [n, h, w, 1 or 3]"
        )
    if not 0 <= item < len(images):
        raise UserError(f"no item {item}; the HDF5 file holds items 0 to {len(images) - 1}")
    check_size(images.shape[2], images.shape[1])
    pixels = images[item]
    return pixels[..., 0] if channels == (1,) else pixels


# Opened once per process: the id is part of the key because a handle does not survive a fork. The
# lock inside h5py lets threads share it. The cache of 64 MB holds a chunk of many images.
@functools.lru_cache(maxsize=8)
def _open(path: Path, process: int) -> h5py.Dataset:
    file = h5py.File(path, "r", rdcc_nbytes=2**26)
    images = file.get("x")
    if not isinstance(images, h5py.Dataset):
        raise UserError(
            f"the HDF5 file has no data set 'x'; it holds {', '.join(file) or 'nothing'}"
        )
    return images
