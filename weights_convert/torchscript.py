"""TorchScript archives (`torch.jit.save`), as OpenAI published CLIP, without running their code.

The module lies in `data.pkl`: objects of classes of the archive's own code, which are taken here
for plain holders of attributes, and tensors whose bytes lie in entries beside it. The code itself
is never opened.
"""

import collections
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Test whether a zip archive is a TorchScript module: it has code beside its pickle."""
    return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def is_code(entry: str) -> bool:
    """Test whether an entry of a TorchScript archive is code, which may be compressed."""
    return "code" in entry.split("/")[1:-1]


def read_torchscript(path: Path) -> dict[str, np.ndarray]:
    """The parameters and buffers of the module by dotted name, as its `state_dict` has them.

    Raises:
      pickle.UnpicklingError: the pickle names anything but modules, tensors and plain values.
      KeyError, ValueError: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = (entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
        with archive.open(name) as file:
            module = _Unpickler(file, archive, name.removesuffix("/data.pkl")).load()
        return dict(_tensors(module, ""))


class _Module:
    """Any object of a class of the archive; what it holds is in `vars`."""


class _Storage(NamedTuple):
    """Numbers of a file; no bare array, for a view that a pickle has made must not pass for one."""

    values: np.ndarray


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a persistent {kind!r} is not allowed")
        data = self._archive.read(f"{self._root}/data/{key}")
        return _Storage(np.frombuffer(data, dtype, count))


def _tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    values = storage.values
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(values)):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in vars(module).items():
        if isinstance(value, np.ndarray):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
