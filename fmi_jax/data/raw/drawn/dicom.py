"""Writes small uncompressed DICOM files."""

from pathlib import Path
from typing import Any

import numpy as np

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary capture: an image of any kind."""


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    """Write one grey image, of which all bits of the pixels count.

    Args:
      path: path of the file.
      pixels: image, uint8 or uint16 `[h, w]`.
      tags: further elements by keyword.
    """
    from pydicom.dataset import Dataset, FileMetaDataset  # slow to import
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    rows, columns = pixels.shape
    bits = 8 * pixels.itemsize
    described = {
        "SOPClassUID": SOP_CLASS,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
    }
    dataset.update(tags | described)  # type: ignore[arg-type]
    data = pixels.tobytes()
    dataset.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))
    dataset.save_as(path, enforce_file_format=True)
