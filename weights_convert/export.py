"""Native weights back to PyTorch, under the names of a publisher."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fmi_jax.artifacts.tensors import write_tensors
from fmi_jax.artifacts.weights import NativeFile, check_backbone, held_arch, read_backbone
from fmi_jax.atomic import whole_file
from fmi_jax.errors import UserError, unknown_name
from fmi_jax.models.base import ArchConfig, BackboneSpec
from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.run.network import read_trained, whole_backbone
from weights_convert.engine import Layout, Rule, plan
from weights_convert.layouts.registry import layouts_for
from weights_convert.stacked import StackedArch, blocks_again, stacked_of_native


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Weights to export.

    Attributes:
      spec: backbone, or stacked classifier, that they belong to.
      tag: short name of the weights.
      arch: arch of the parameters.
      image_size: side in pixels of the square images that they are for.
      params: arrays by native name.
      head: kernel `[f, k]` and bias `[k]` of a trained linear head on its pooled feature.
      layout: the layout they were converted from; "" for none.
    """

    spec: BackboneSpec
    tag: str
    arch: ArchConfig
    image_size: int
    params: Mapping[str, np.ndarray]
    head: tuple[np.ndarray, np.ndarray] | None = None
    layout: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """Record of an export: the file, its layout, its keys, and whether the head is in it."""

    path: Path
    layout: Layout
    tensors: Mapping[str, np.ndarray]
    with_head: bool


def check_native(path: Path, spec: BackboneSpec) -> tuple[BackboneSpec, NativeFile]:
    """A converted file, checked to be of `spec` or of a stacked classifier on it, and of which.

    Raises:
      UserError: it is damaged or of something else.
    """
    file = read_backbone(path)
    if file.arch["class"] == StackedArch.__name__:
        inside = file.arch.get("backbone")
        arch = (held_arch(spec.arch, inside) if isinstance(inside, dict) else None) or spec.arch
        spec = stacked_of_native(dataclasses.replace(spec, arch=arch), file.params)
    file, arch = check_backbone(path, spec)
    return dataclasses.replace(spec, arch=arch), file


def read_source(spec: BackboneSpec, path: Path) -> Source:
    """The weights in a converted file of `spec`, or the best ones of the run in a folder.

    Raises:
      UserError: it is neither, damaged, or not of `spec`.
    """
    if not path.is_dir():
        whole, file = check_native(path, spec)
        return Source(
            spec=whole,
            tag=file.provenance.tag,
            arch=whole.arch,
            image_size=whole.image_size,
            params=file.params,
            layout=file.provenance.layout,
        )
    run = read_trained(path)
    if run.assembly.spec.name != spec.name:
        raise UserError(f"{path} is a run of {run.assembly.spec.name}, not of {spec.name}.")
    arch, params = whole_backbone(run)
    # A publisher's head reads the pooled feature; what else stands on a backbone has no place.
    linear = isinstance(run.assembly.partition.merge(run.arrays), LinearClassifier)
    return Source(
        spec=spec,
        tag=path.resolve().name,
        arch=arch,
        image_size=run.config.image_size,
        params=params,
        head=(np.asarray(run.arrays["head.kernel"]), np.asarray(run.arrays["head.bias"]))
        if linear
        else None,
    )


def export(source: Source, publisher: str, out: Path) -> Exported:
    """Write weights as `publisher` would: a PyTorch file, or `.safetensors`.

    Args:
      source: the weights.
      publisher: "original", "hf" or "timm".
      out: folder to write to; made if need be.

    Raises:
      UsageError: this publisher has no layout for the family.
      UserError: none of its layouts can express the arch, or there is another file already.
        Nothing is written then.
    """
    layout, steps = _fitting(source, publisher)
    with_head = (
        source.head is not None
        and layout.head is not None
        and layout.head.unless not in source.params
    )
    tensors = _tensors(layout, steps, source, with_head=with_head)
    in_torch = publisher == "original"
    suffix = "pth" if in_torch else "safetensors"
    path = out / f"{source.spec.name}.{source.tag}.{publisher}.{suffix}"
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        if in_torch:
            _write_torch(draft, tensors, layout.wrappers[0])
        else:
            write_tensors(draft, tensors, {"format": "pt"})
        if path.exists() and path.read_bytes() != draft.read_bytes():
            raise UserError(
                f"{path}: there is another file of this name. Remove it, or choose another --out."
            )
    return Exported(path=path, layout=layout, tensors=tensors, with_head=with_head)


def _fitting(source: Source, publisher: str) -> tuple[Layout, list[Rule]]:
    """The layout to write, with its steps; the one the weights came in goes first."""
    layouts = layouts_for(source.spec)
    fits = [layout for layout in layouts if publisher in layout.publishers]
    if not fits:
        valid = dict.fromkeys(name for layout in layouts for name in layout.publishers)
        raise unknown_name(f"publisher of {source.spec.name}", publisher, valid)
    fits.sort(key=lambda layout: layout.name != source.layout)
    refusals = []
    for layout in fits:
        try:
            return layout, plan(layout, source.params)
        except UserError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _tensors(
    layout: Layout, steps: list[Rule], source: Source, *, with_head: bool
) -> dict[str, np.ndarray]:
    prefix = layout.head.prefix if with_head and layout.head else layout.prefixes[0]
    tensors: dict[str, np.ndarray] = {}
    for step in steps:
        values = step.op.inverse(*(source.params[name] for name in step.targets))
        tensors.update(zip((prefix + key for key in step.sources), values, strict=True))
    made = {
        rule.key: np.zeros(rule.zeros(source.arch), np.float32)
        for rule in layout.ignored
        if rule.zeros
    }
    if layout.buffers:
        made |= layout.buffers(source.arch, source.image_size)
    tensors |= {prefix + key: value for key, value in made.items()}
    if with_head and layout.head and source.head:
        kernel, bias = source.head
        tensors |= {f"{layout.head.key}.weight": kernel.T, f"{layout.head.key}.bias": bias}
    if isinstance(source.arch, StackedArch):
        tensors = blocks_again(tensors)
    return {key: np.asarray(value, order="C") for key, value in tensors.items()}


def _write_torch(path: Path, tensors: Mapping[str, np.ndarray], wrapper: str) -> None:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            "writing a PyTorch file needs PyTorch: pip install 'fmi_jax[convert]'."
        ) from error
    state = {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
    with path.open("wb") as file:  # by its name torch would call the entries of the archive
        torch.save({wrapper: state} if wrapper else state, file)
