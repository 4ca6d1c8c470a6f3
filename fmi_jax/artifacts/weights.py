"""Converted weights: one `.safetensors` file per backbone, which says itself what it holds.

The header carries the arch, where the weights come from, a SHA-256 of every tensor and one of
the header's own entries, so that a flipped bit anywhere is noticed and named.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fmi_jax import atomic
from fmi_jax.artifacts.tensors import write_tensors
from fmi_jax.errors import UserError, unknown_name
from fmi_jax.models.base import (
    ArchConfig,
    Backbone,
    BackboneSpec,
    Execution,
    create_abstract,
    parameters,
)
from fmi_jax.paths import check_file

FORMAT = "fmi_jax backbone 1"
ENTRY = "fmi_jax"  # one entry: several would be written in random order
_MOST_SIZE = 2**16  # of the channels or the grid of a file; more would never fit anywhere
STEMS = ("sum", "mean", "first", "study")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights come from.

    Attributes:
      backbone: name of the backbone they fit.
      tag: short name of the weights; "custom" for a file that is none of the published ones.
      source: name of the file, or the address, that they were converted from.
      source_sha256: checksum of that file.
      layout: key layout it was written in.
      licence: SPDX identifier, or the publisher's own name for it; "unknown" for "custom".
      converter: version of the converter.
    """

    backbone: str
    tag: str
    source: str
    source_sha256: str
    layout: str
    licence: str
    converter: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeFile:
    """What a converted file says and holds.

    Attributes:
      arch: the fields of the arch, and the name of its class under "class".
      provenance: origin of the weights.
      params: float32 arrays by native name.
    """

    arch: Mapping[str, Any]
    provenance: Provenance
    params: Mapping[str, np.ndarray]


def save_backbone(
    path: str | Path, params: Mapping[str, Any], arch: ArchConfig, provenance: Provenance
) -> None:
    """Write a converted file; it appears whole under its name, or not at all.

    Args:
      path: ends in `.safetensors`.
      params: float32 arrays by native name.
      arch: arch that they belong to.
      provenance: origin of the weights.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in params.items()}
    header = {
        "format": FORMAT,
        "arch": arch_fields(arch),
        "provenance": dataclasses.asdict(provenance),
        "sha256": {name: _digest(arrays[name]) for name in sorted(arrays)},
    }
    metadata = {ENTRY: json.dumps(header | {"seal": atomic.json_sha256(header)})}
    with atomic.whole_file(path) as draft:
        write_tensors(draft, arrays, metadata)


def read_backbone(path: str | Path) -> NativeFile:
    """Read a converted file and check it against its own checksums.

    Raises:
      UserError: there is no such file, it is cut, damaged, or no converted file. The message
        names every tensor that differs.
    """
    path = Path(path)
    if os.path.lexists(path):
        check_file(path)
    else:
        near = sorted(p.name for p in path.parent.glob("*.safetensors"))[:10]
        found = f"{path.parent} holds {', '.join(near)}." if near else "There is none beside it."
        raise UserError(
            f"{path}: there is no such weights file. {found}"
            " Convert a public checkpoint with python -m weights_convert."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            header = _header(path, file.metadata())
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cut or damaged: {error}. Convert or copy it again.") from error
    digests = header["sha256"]
    differ = [n for n in digests if n not in params or _digest(params[n]) != digests[n]]
    differ += [name for name in params if name not in digests]
    if differ:
        raise UserError(
            f"{path}: damaged: {len(differ)} of {len(digests)} tensors differ from their"
            f" checksums: {', '.join(differ)}. Copy or convert it again."
        )
    unsound = [n for n, x in params.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]
    if unsound:
        raise UserError(
            f"{path}: not sound: {len(unsound)} tensors hold NaN or infinity:"
            f" {', '.join(unsound)}. Convert the checkpoint again."
        )
    return NativeFile(
        arch=header["arch"],
        provenance=Provenance(**header["provenance"]),
        params=params,
    )


def check_backbone(path: str | Path, spec: BackboneSpec) -> tuple[NativeFile, ArchConfig]:
    """Read a converted file and check that it holds exactly the parameters of `spec`.

    Returns:
      The file, and the arch that its parameters are of: that of `spec`, but perhaps for images
      of other channels or another size, and without what no feature depends on (the neck of
      SAM), as the study saves it.

    Raises:
      UserError: as `read_backbone`, or the file's arch or a parameter is not that of `spec`.
    """
    file = read_backbone(path)
    held = file.arch
    arch = held_arch(spec.arch, held)
    if arch is None:
        wanted = arch_fields(spec.arch)
        differ = [
            f"{field} is {held.get(field, 'absent')!r} (expected {wanted.get(field, 'absent')!r})"
            for field in dict.fromkeys((*wanted, *held))
            if held.get(field) != wanted.get(field)
        ]
        raise UserError(
            f"{path}: weights of {file.provenance.backbone}, not of {spec.name}:"
            f" {', '.join(differ)}."
        )
    _check_parameters(f"{path}", file.params, spec.family, arch)
    return file, arch


def held_arch(arch: ArchConfig, held: Mapping[str, Any]) -> ArchConfig | None:
    """The arch with the fields that a file holds, if it is `arch` or what `check_backbone` allows
    beside it."""
    own: dict[str, Any] = {"in_channels": held.get("in_channels")}
    sizes = [own["in_channels"]]
    if hasattr(arch, "grid"):
        grid = held.get("grid")
        own["grid"] = tuple(grid) if isinstance(grid, list) else ()
        sizes += own["grid"] if len(own["grid"]) == 2 else [None]
    if not all(type(size) is int and 0 < size <= _MOST_SIZE for size in sizes):
        return None
    for kept in (arch, arch.truncated(arch.num_blocks - 1)):
        variant = dataclasses.replace(kept, **own)
        if {**held, "class": type(arch).__name__} == arch_fields(variant):
            return variant
    return None


def load_backbone(
    path: str | Path, spec: BackboneSpec, arch: ArchConfig, *, stem: str = "sum"
) -> dict[str, np.ndarray]:
    """The parameters of a converted file, made to fit `arch`.

    Args:
      path: a file that `python -m weights_convert` wrote.
      spec: the backbone that the file must be of.
      arch: arch of `spec`, or one with fewer blocks (the later ones are dropped), another number
        of input channels, or whatever else `spec.family.adapt` resizes at loading.
      stem: way to read other channel counts, see `adapt_stem`.

    Returns:
      Exactly the parameters of `spec.family` at `arch`, float32, by native name.

    Raises:
      UserError: the file is not sound, or not of `spec`.
      UsageError: `stem` is none of `STEMS`.
    """
    file, source = check_backbone(path, spec)
    return fit_backbone(f"{path}", file.params, spec, source, arch, stem=stem)


def fit_backbone(
    what: str,
    params: Mapping[str, np.ndarray],
    spec: BackboneSpec,
    source: ArchConfig,
    arch: ArchConfig,
    *,
    stem: str = "sum",
) -> dict[str, np.ndarray]:
    """Make the parameters of a backbone fit another number of blocks, channels or positions.

    Args:
      what: place they come from, for messages.
      params: float32 arrays by native name.
      spec: backbone they belong to.
      source: arch they belong to.
      arch, stem: see `load_backbone`.

    Returns:
      Exactly the parameters of `spec.family` at `arch`, float32, by native name.

    Raises:
      UserError: they cannot be made to fit.
      UsageError: `stem` is none of `STEMS`.
    """
    params = dict(params)
    if arch.num_blocks < source.num_blocks:
        source = source.truncated(arch.num_blocks - 1)
        params = {name: params[name] for name in _abstract(spec.family, source)}
    if arch.in_channels != source.in_channels:
        source = dataclasses.replace(source, in_channels=arch.in_channels)
        for name, value in _abstract(spec.family, source).items():
            if value.shape != params[name].shape:  # only a stem depends on the channels
                params[name] = adapt_stem(params[name], arch.in_channels, stem)
    params = spec.family.adapt(params, source, arch)
    _check_parameters(what, params, spec.family, arch)
    return params


def adapt_stem(kernel: Any, channels: int, stem: str) -> Any:
    """A convolution over `channels` input channels from one over another number of them.

    Args:
      kernel: `[h, w, c, d]`.
      channels: number of input channels that is wanted.
      stem: "sum": every channel gets the kernels' sum divided by `channels`, so that a grey
        image gives what its repetition over all channels gave; "mean": every channel gets
        their mean; "first": the kernels repeated in order and cut to `channels`, which for
        one channel is the first alone (the study: `w.repeat(1, 4, 1, 1)[:, :1]`); "study": as
        "first", for a network whose stem the study rebuilds (`ArchConfig.with_study_stem`).

    Returns:
      `[h, w, channels, d]`, of the same array type.
    """
    if stem not in STEMS:
        raise unknown_name("stem", stem, STEMS)
    xp, held = kernel.__array_namespace__(), kernel.shape[2]
    if stem in ("first", "study"):
        return xp.concat([kernel] * -(-channels // held), axis=2)[:, :, :channels]
    total = xp.sum(kernel, axis=2, keepdims=True)
    return xp.concat([total / (channels if stem == "sum" else held)] * channels, axis=2)


def arch_fields(arch: ArchConfig) -> dict[str, Any]:
    """The fields of `arch` as plain JSON values, with the name of its class."""
    return json.loads(json.dumps({"class": type(arch).__name__, **dataclasses.asdict(arch)}))


def _abstract(family: type[Backbone], arch: ArchConfig) -> dict[str, Any]:
    return parameters(create_abstract(family, arch, Execution()))


def _check_parameters(
    what: str, params: Mapping[str, Any], family: type[Backbone], arch: ArchConfig
) -> None:
    native = _abstract(family, arch)
    off = [f"{name} is missing" for name in native if name not in params]
    off += [f"{name} is not expected" for name in params if name not in native]
    off += [
        f"{name} is {params[name].dtype}{list(params[name].shape)}"
        f" (expected {value.dtype}{list(value.shape)})"
        for name, value in native.items()
        if name in params
        and (params[name].shape != value.shape or params[name].dtype != value.dtype)
    ]
    if off:
        raise UserError(f"{what}: not the parameters of this {family.__name__}: {'; '.join(off)}.")


def _digest(x: np.ndarray) -> str:
    digest = hashlib.sha256(f"{x.dtype.str}{x.shape}".encode())
    digest.update(x.data)
    return digest.hexdigest()


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What a converted file says of itself, checked against its seal."""
    if metadata is None or ENTRY not in metadata:
        raise UserError(
            f"{path}: not a converted weights file. Convert the checkpoint with"
            " python -m weights_convert NAME --checkpoint FILE --out DIR."
        )
    damaged = UserError(f"{path}: damaged header: its checksum differs. Copy it again.")
    try:
        header = json.loads(metadata[ENTRY])
        seal = header.pop("seal")
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise damaged from error
    if seal != atomic.json_sha256(header):
        raise damaged
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} is of format {header.get('format')!r}, and this version of fmi_jax reads"
            f" {FORMAT!r}. Install the version that wrote it, or convert the checkpoint again with"
            " python -m weights_convert NAME --checkpoint FILE --out DIR."
        )
    arch, origin, digests = (header.get(name) for name in ("arch", "provenance", "sha256"))
    names = {field.name for field in dataclasses.fields(Provenance)}
    if not (
        isinstance(arch, dict)
        and isinstance(arch.get("class"), str)
        and isinstance(origin, dict)
        and {*origin} == names
        and isinstance(digests, dict)
        and all(isinstance(text, str) for text in (*origin.values(), *digests.values()))
    ):
        raise UserError(
            f"{path}: its header lacks its arch, origin or checksums, or holds others: expected"
            " the file as python -m weights_convert wrote it. Convert the checkpoint again."
        )
    return header
