"""Checkpoint files as named arrays, without running anything that is in them.

What a file is follows from its first bytes, not from its name: a zip written by `torch.save`
(.pth, .pt, .bin) or `torch.jit.save`, the older plain pickle, `.safetensors`, `.npz`, BYOL's
pickle. PyTorch's pickles go through its `weights_only` unpickler with a short list of harmless
extras, any other through one that looks nothing up (`haiku_pickle`). Archives that
are compressed or claim to be larger than they are get refused before they are opened: nothing
that `torch.save` or `numpy.savez` write is compressed, and a few kilobytes can unfold to
terabytes.
"""

import argparse
import dataclasses
import functools
import os
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from fmi_jax import atomic
from fmi_jax.errors import UserError
from fmi_jax.paths import check_file
from weights_convert.haiku_pickle import read_haiku_pickle
from weights_convert.torchscript import is_code, is_torchscript, read_torchscript


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of tensors.

    Attributes:
      path: path of the file.
      format: kind of file, in words.
      sha256: checksum of the whole file, in hex.
      groups: the tensors by key, for each entry of the file's top-level dict that is a dict
        of tensors; those that lie at the top level themselves are under "".
      others: entries of the top level that hold no tensors ("epoch", "optimizer").
    """

    path: Path
    format: str
    sha256: str
    groups: Mapping[str, Mapping[str, np.ndarray]]
    others: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of tensors.

    Raises:
      UserError: there is no such file, it is none of the known kinds, is cut or damaged, is
        compressed, or holds anything but data.
    """
    if os.path.lexists(path):
        check_file(path)
    else:
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in _SUFFIXES)[:5]
        hint = f" {path.parent} holds {', '.join(near)}." if near else ""
        raise UserError(f"{path}: there is no such file.{hint}")
    with path.open("rb") as file:
        start = file.read(16)
    sha256 = atomic.sha256(path)
    format, read = _kind(path, start)
    try:
        content = read(path)
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused: {_offence(error)}. A checkpoint must hold tensors and plain"
            " values only, as unpickling anything else can run code. Load it where you trust it"
            " and save its state dict alone."
        ) from error
    except Exception as error:  # a parser on a file from anywhere may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: cut or damaged {format}: {reason[0][:200]}. Fetch the file again."
        ) from error
    groups, others = _group(content)
    if not groups:
        raise UserError(
            f"{path}: no tensors in this {format}; its entries are"
            f" {', '.join(map(str, others[:10])) or 'none'}."
        )
    return Checkpoint(path=path, format=format, sha256=sha256, groups=groups, others=others)


_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz", ".pkl")
_TORCH_MAGIC = b"\x8a\x0a"  # opcode and length of the long number that PyTorch's files begin with


def _kind(path: Path, start: bytes) -> tuple[str, Any]:
    # First, as the length of a safetensors header may look like the start of the others.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors file", _read_safetensors
    if start.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if start.startswith(b"\x80") and start[2:4] != _TORCH_MAGIC:
        return "pickle", read_haiku_pickle
    if start.startswith(b"\x80"):
        return "PyTorch file (before 1.6)", functools.partial(_read_torch, mmap=False)
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            held = ", ".join(archive.getnames()[:3])
        raise UserError(
            f"{path}: a tar archive (holds {held}): unpack it and give the file inside."
        )
    raise UserError(
        f"{path}: not a checkpoint: expected a PyTorch file (.pth, .pt, .bin), .safetensors,"
        f" .npz or BYOL's .pkl, and it starts with {start[:8]!r}."
    )


def _zip_kind(path: Path) -> tuple[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            script = is_torchscript(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: cut or damaged archive: {error}. Fetch it again.") from error
    if script:  # its code is never opened
        entries = [entry for entry in entries if not is_code(entry.filename)]
    if packed := [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]:
        raise UserError(
            f"{path}: compressed archive ({packed[0]}): checkpoints are stored uncompressed, and"
            " a small compressed file can unfold to any size. Save it again with torch.save or"
            " numpy.savez."
        )
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > size:
        raise UserError(
            f"{path}: oversized archive: its entries claim {claimed} bytes in a file of {size}."
        )
    if script:
        return "TorchScript file", read_torchscript
    if any(entry.filename.endswith("/data.pkl") for entry in entries):
        return "PyTorch file", functools.partial(_read_torch, mmap=True)
    if entries and all(entry.filename.endswith(".npy") for entry in entries):
        return "npz file", _read_npz
    raise UserError(
        f"{path}: a zip archive that neither torch.save nor numpy.savez wrote"
        f" ({', '.join(entry.filename for entry in entries[:3])})."
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _read_torch(path: Path, *, mmap: bool) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading a PyTorch file needs PyTorch: pip install 'fmi_jax[convert]'."
        ) from error
    # Training scripts of the time saved their arguments and numpy scores along.
    scalar = np.float64(0).__reduce__()[0]
    allowed = [
        argparse.Namespace,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
    ]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    return _to_numpy(content, torch)


def _offence(error: Exception) -> str:
    """The line of PyTorch's long message that names what it met."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if "weights_only" not in line]  # advice to open it unchecked
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or ["not a pickle of tensors"])[0][:200].rstrip(".")


def _to_numpy(value: Any, torch: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:
            return value.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.detach().numpy()
    if isinstance(value, Mapping):
        return {key: _to_numpy(item, torch) for key, item in value.items()}
    return value


def _group(
    content: Any,
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...]]:
    """Split a file's content into dicts of tensors and the names of everything else."""
    if not isinstance(content, Mapping):
        return {}, (type(content).__name__,)
    groups: dict[str, dict[str, np.ndarray]] = {}
    others = []
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            groups.setdefault("", {})[str(key)] = value
        elif isinstance(value, Mapping) and (held := _arrays(value)):
            groups[str(key)] = held
        else:
            others.append(str(key))
    return groups, tuple(others)


def _arrays(values: Mapping) -> dict[str, np.ndarray]:
    return {str(name): item for name, item in values.items() if isinstance(item, np.ndarray)}
