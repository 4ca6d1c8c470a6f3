"""Writing `.safetensors` files: a header of JSON, then the bytes of each tensor.

The library's own writer makes a private file of its own beside the one that it is given: nobody
else may read the result, whatever the umask, and a process that is killed leaves it there.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_TYPES = {
    **{f"f{size}": f"F{8 * size}" for size in (2, 4, 8)},
    **{f"i{size}": f"I{8 * size}" for size in (1, 2, 4, 8)},
    **{f"u{size}": f"U{8 * size}" for size in (1, 2, 4, 8)},
    "b1": "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays by name, with entries of metadata; use it within `atomic.whole_file`.

    Raises:
      OSError: the file cannot be written.
      KeyError: an array has a type that the format does not know.
    """
    # Wide types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in names:
        x = tensors[name]
        begin, end = end, end + x.nbytes
        kind = _TYPES[f"{x.dtype.kind}{x.dtype.itemsize}"]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            x = tensors[name]
            file.write(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data)
