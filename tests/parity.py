"""Compare with the PyTorch reference that is reimplemented: `python tests/parity.py CASE...`

A case is a folder with `checkpoint.pth` (in the layout of the public file), `io.npz` (inputs
and what the reference makes of them) and `meta.json` (sizes, runs, what the gradients are of).
The checkpoint goes the way every checkpoint goes: read, recognised, converted, written as a
native file, loaded. Every array of every run and every gradient is compared, in the axes of the
reference; the largest error is printed per array, absolute and relative to the array's largest
magnitude (the loss: to that of the terms it is the sum of). A case of functions without a network
(`parity_families.numbers`: metrics, nearest neighbours) has no checkpoint. The exit status is 1 if
an error is above its tolerance or an array is not covered.

The same weights in a second layout, a `checkpoint_<name>` of `meta.json`, go the same way. Outputs
are compared with `io_<name>.npz`, what that layout's own code computes, or without it with `io.npz`
in the runs in which `meta.json` puts that code within 1e-5 of it. Which were compared is printed.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from parity_families import FAMILIES
from parity_families.family import Family, Groups
from parity_families.numbers import NUMBERS
from tolerances import PARITY_FORWARD, PARITY_GRADIENT, PARITY_ROUNDING

from fmi_jax.artifacts.weights import Provenance, adapt_stem, load_backbone, save_backbone
from fmi_jax.errors import UserError
from fmi_jax.models.base import ArchConfig, BackboneSpec, Execution, create_abstract, parameters
from weights_convert.engine import Layout, Match, convert
from weights_convert.layouts.registry import LAYOUTS, layouts_of
from weights_convert.read import read_checkpoint

PRIMARY = "(primary)"
FIRST = "checkpoint.pth"
SAME_REFERENCE = 1e-5  # two codes of one network agree: largest absolute difference
INPUTS = ("image", "labels", "grad_cotangent")
STEM = "first"  # how the study reads fewer channels than the checkpoint has


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One array beside the reference's.

    Attributes:
      name: name of the array.
      absolute: largest error.
      relative: largest error as a share of the array's largest magnitude.
      tolerance: limit of `relative`.
      file: file that was read: a checkpoint but for a case of functions.
      run: run that the array is of.
    """

    name: str
    absolute: float
    relative: float
    tolerance: float
    file: str = FIRST
    run: str = PRIMARY

    @property
    def passed(self) -> bool:
        return self.relative <= self.tolerance  # False for NaN


def compare_case(folder: Path) -> list[Comparison]:
    """Every array of a case, in the order of its file.

    Raises `UserError` for a folder that is no case, a family without an adaptor, or a
    checkpoint that does not convert.
    """
    meta, arrays = _read(folder)
    if meta["family"] in NUMBERS:
        numbers = NUMBERS[meta["family"]]
        with jax.default_matmul_precision("highest"):
            ours = numbers.of_case(meta, arrays, folder)
        return [
            dataclasses.replace(
                _compare(name, ours.get(name), reference, numbers.tolerance, None), file="io.npz"
            )
            for name, reference in arrays.items()
            if name not in meta["inputs"]
        ]
    case = _Case.read(folder)
    cases = [case, *(case.in_layout(file) for file in second_layouts(folder))]
    with tempfile.TemporaryDirectory() as scratch, jax.default_matmul_precision("highest"):
        return [found for each in cases for found in each.comparisons(Path(scratch))]


def second_layouts(folder: Path) -> list[Path]:
    """Further checkpoints of a case, with its weights in other layouts: those it describes."""
    described = json.loads((folder / "meta.json").read_text())
    return [file for file in sorted(folder.glob("checkpoint_*.pth")) if file.stem in described]


def _runs(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the runs that have images among `arrays`."""
    images = [name for name in arrays if name.split("/")[-1] == "image"]
    return [name.removesuffix("image").removesuffix("/") or PRIMARY for name in images]


def _run_of(name: str, runs: Sequence[str]) -> str:
    """The run of `runs` that an array of this name is of."""
    return next((run for run in runs if name.startswith(f"{run}/")), PRIMARY)


def _is_gradient(name: str) -> bool:
    return name.split("/")[-1].startswith("grad_") or "grad/" in name


def _read(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """Description and arrays of a case."""
    for name in ("meta.json", "io.npz"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a case: there is no {name}.")
    meta = json.loads((folder / "meta.json").read_text())
    if meta["family"] not in (*FAMILIES, *NUMBERS):
        raise UserError(
            f"{folder}: family {meta['family']!r} has no adaptor; there are"
            f" {', '.join((*FAMILIES, *NUMBERS))}."
        )
    with np.load(folder / "io.npz") as io:
        return meta, dict(io)


@dataclasses.dataclass(frozen=True)
class _Case:
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    family: Family
    arch: ArchConfig
    match: Match
    groups: Groups  # the checkpoint's tensors
    params: Mapping[str, np.ndarray]  # native, as converted
    unused: Mapping[str, np.ndarray]  # tensors the converter ignores: a classifier head
    references: Mapping[str, np.ndarray]  # what is compared, by name
    file: str = FIRST

    @classmethod
    def read(cls, folder: Path) -> "_Case":
        meta, arrays = _read(folder)
        if not (folder / FIRST).is_file():
            raise UserError(f"{folder}: not a case: there is no {FIRST}.")
        family = FAMILIES[meta["family"]]
        checkpoint = read_checkpoint(folder / FIRST)
        arch = family.arch(meta["config"], checkpoint.groups)
        try:
            converted = _converted(family, arch, checkpoint.groups)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        return cls(
            meta=meta,
            arrays=arrays,
            family=family,
            arch=arch,
            groups=checkpoint.groups,
            references={
                name: value
                for name, value in arrays.items()
                if name.split("/")[-1] not in INPUTS and name not in meta.get("inputs", ())
            },
            **converted,
        )

    def in_layout(self, file: Path) -> "_Case":
        """This case with the weights of a second checkpoint, and the outputs to compare."""
        groups = read_checkpoint(file).groups
        try:
            converted = _converted(self.family, self.arch, groups)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        own, there = self.match.layout.head, converted["match"].layout.head
        if own is not None and there is not None:  # the classifier by its name in the first file
            converted["unused"] = {
                name.replace(f"{there.key}.", f"{own.key}.", 1): value
                for name, value in converted["unused"].items()
            }
        outputs = {k: v for k, v in self.references.items() if not _is_gradient(k)}
        beside = file.with_name(file.name.replace("checkpoint", "io", 1)).with_suffix(".npz")
        if beside.is_file():
            with np.load(beside) as io:
                outputs = dict(io)
        else:
            runs = _runs(self.arrays)
            apart = self.meta[file.stem].get("max_abs_diff_to_io", {})
            known = {_run_of(name, runs) for name in apart}
            wrong = {_run_of(n, runs) for n, x in apart.items() if not x <= SAME_REFERENCE}
            outputs = {k: v for k, v in outputs.items() if _run_of(k, runs) in known - wrong}
        if not outputs:
            raise UserError(
                f"{file}: nothing to compare it with: expected {beside.name}, or in meta.json"
                f" {file.stem}.max_abs_diff_to_io with a run within {SAME_REFERENCE:.0e}."
            )
        return dataclasses.replace(
            self, groups=groups, references=outputs, file=file.name, **converted
        )

    def of_run(self, run: str) -> "_Case":
        """This case with the weights that `run` reads from the checkpoint."""
        name = self.family.run_layout(self._entry(run))
        if name is None:
            return self
        converted = _converted(self.family, self.arch, self.groups, LAYOUTS[name])
        return dataclasses.replace(self, **converted)

    def _entry(self, run: str) -> Mapping[str, Any]:
        """What the case says of a run, with its name."""
        return {"name": run, **self.meta["runs"].get(run, {})}

    def comparisons(self, scratch: Path) -> Iterator[Comparison]:
        runs = _runs(self.arrays)
        ours: dict[str, np.ndarray] = {}
        scales: dict[str, float] = {}
        compared = {_run_of(name, runs) for name in self.references}
        for run in (run for run in runs if run in compared):
            outputs, gradients, loss_scale = self.of_run(run)._run(run, scratch)
            ours |= outputs | gradients
            scales |= loss_scale
        for name, reference in self.references.items():
            found = _compare(
                name, ours.get(name), reference, self._tolerance(name), scales.get(name)
            )
            yield dataclasses.replace(found, file=self.file, run=_run_of(name, runs))

    def _tolerance(self, name: str) -> float:
        """Relative; larger where float32 itself is further off, as the case has it measured."""
        known = self.meta.get("arrays", {}).get(name, {})
        rounding = known.get("float32_vs_float64_abs_diff") or 0.0
        largest = known.get("abs_max") or np.inf
        base = PARITY_GRADIENT if _is_gradient(name) else PARITY_FORWARD
        return max(base, PARITY_ROUNDING * rounding / largest)

    def _run(
        self, run: str, scratch: Path
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
        """Our outputs and gradients of one run under their names in the case, and for the
        loss the magnitude to which its error is relative."""
        native_file = scratch / f"{self.meta['name']}.safetensors"
        save_backbone(native_file, self.params, self.arch, _provenance(self))
        prefix = "" if run == PRIMARY else f"{run}/"
        image = self.arrays[f"{prefix}image"].transpose(0, 2, 3, 1)
        arch = dataclasses.replace(self.arch, in_channels=image.shape[-1])
        arch = self.family.run_arch(arch.sized(*image.shape[1:3]), self._entry(run))
        params = load_backbone(native_file, _spec(self), arch, stem=STEM)
        unused = {k: v for k, v in self.unused.items() if v.dtype.kind == "f"}
        unused |= self._further_inputs(prefix)
        training = self._entry(run).get("mode") == "train"
        forward = self._forward(arch, training)
        where = self._gradient_prefix(run) if self.file == FIRST else None
        if where is None:
            outputs = jax.jit(forward)(params, unused, image)
            return self._named(prefix, outputs), {}, {}
        labels = self.arrays.get(f"{where}labels", self.arrays.get("labels"))
        cotangent = self.arrays.get(f"{where}grad_cotangent", self.arrays.get("grad_cotangent"))
        feature = self.meta["grad"].get("feature", "final_logits").split("/")[-1]

        def loss(*inputs: Any) -> tuple[Any, Any]:
            outputs = forward(*inputs)
            if self.family.loss is not None:
                return self.family.loss(outputs, inputs[1]), outputs
            if feature not in outputs:
                raise UserError(f"no adaptor computes the feature {feature!r} of meta.grad.")
            if cotangent is None:  # of a classifier: its mean cross entropy
                log_probabilities = jax.nn.log_softmax(outputs[feature])
                return -log_probabilities[np.arange(len(labels)), labels].mean(), outputs
            return (outputs[feature] * cotangent).sum(), outputs

        @jax.jit
        def step(*inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            backward = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
            (value, outputs), (d_params, d_unused, d_image) = backward(*inputs)
            by_key = {f"grad/{k}": v for k, v in self._to_source(d_params, where).items()}
            by_key |= {f"grad/{k}": v for k, v in d_unused.items()}
            image_gradient = d_image.transpose(0, 3, 1, 2)
            return outputs, by_key | {"grad_loss": value, "grad_image": image_gradient}

        outputs, gradients = step(params, unused, image)
        # The terms of the sum cancel: their magnitude, not that of what is left, bounds rounding.
        scales = {}
        if cotangent is not None:
            terms = np.asarray(outputs[feature]) * cotangent
            scales[f"{where}grad_loss"] = float(np.abs(terms).sum())
        return (
            self._named(prefix, outputs),
            {f"{where}{k}": np.asarray(v) for k, v in gradients.items()},
            scales,
        )

    def _further_inputs(self, prefix: str) -> dict[str, np.ndarray]:
        """Inputs of a run beside those that every case may have."""
        names = {name: name.removeprefix(prefix) for name in self.meta.get("inputs", ())}
        return {
            own: self.arrays[name]
            for name, own in names.items()
            if name == prefix + own and "/" not in own and own not in INPUTS
        }

    def _gradient_prefix(self, run: str) -> str | None:
        """What stands before the names of the gradients of `run`; None if it has none."""

        def has_gradients(prefix: str) -> bool:
            starts = (f"{prefix}grad/", f"{prefix}grad_loss", f"{prefix}grad_image")
            return any(name.startswith(starts) for name in self.arrays)

        if run != PRIMARY and has_gradients(f"{run}/"):
            return f"{run}/"
        wanted = str(self.meta.get("grad", {}).get("run", PRIMARY))
        owner = wanted if f"{wanted}/image" in self.arrays else PRIMARY
        return "" if run == owner and has_gradients("") else None

    def _forward(self, arch: ArchConfig, training: bool) -> Callable[..., dict[str, Any]]:
        abstract = create_abstract(self.family.backbone, arch, Execution())
        graphdef, state = nnx.split(abstract)

        def forward(
            params: Mapping[str, Any], unused: Mapping[str, Any], image: Any
        ) -> dict[str, Any]:
            filled = [
                (path, variable.replace(params[".".join(map(str, path))]))
                for path, variable in nnx.to_flat_state(state)
            ]
            module = nnx.merge(graphdef, nnx.from_flat_state(filled))
            if not training:
                return self.family.arrays(module, image, unused)
            outputs = self.family.arrays(module, image, unused, nnx.Rngs(dropout=0))
            stats = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
            return outputs | {f"bn/{'.'.join(map(str, p))}": v.get_value() for p, v in stats}

        return forward

    def _named(self, prefix: str, outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The outputs of a run by their names in the case; running statistics as in a file."""
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        for step in self.match.steps:
            if f"bn/{step.targets[0]}" in arrays:
                values = step.op.inverse(*(arrays.pop(f"bn/{name}") for name in step.targets))
                arrays |= {f"bn/{k}": v for k, v in zip(step.sources, values, strict=True)}
        return {f"{prefix}{name}": value for name, value in arrays.items()}

    def _to_source(self, native: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Gradients of native parameters as gradients of the checkpoint's tensors.

        Conversion is linear, so that is its transpose. The gradient of a stem that was made
        for other channels goes back through that too, unless the case has it as it is used.
        """
        native = dict(native)
        for name, held in self.params.items():
            if name not in native or native[name].shape == held.shape:
                continue
            (step,) = (step for step in self.match.steps if name in step.targets)
            reference = self.arrays.get(f"{where}grad/{step.sources[0]}")
            if reference is not None and reference.size == held.size:
                channels = native[name].shape[2]
                back = jax.linear_transpose(
                    lambda kernel, n=channels: adapt_stem(kernel, n, STEM),
                    jax.ShapeDtypeStruct(held.shape, held.dtype),
                )
                (native[name],) = back(native[name])
        sources: dict[str, Any] = {}
        for step in self.match.steps:
            if step.targets[0] not in native:
                continue  # the run leaves it out
            if native[step.targets[0]].dtype == jax.dtypes.float0:
                continue  # a counter
            cotangents = tuple(native[name] for name in step.targets)
            structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in step.op.inverse(*cotangents)]
            back = jax.linear_transpose(step.op.forward, *structs)(cotangents)
            sources.update(zip(step.sources, back, strict=True))
        return sources


def _converted(
    family: Family, arch: ArchConfig, groups: Groups, layout: Layout | None = None
) -> dict[str, Any]:
    """The fields of a case that follow from how its checkpoint is read: in `layout`, or in the one
    that is recognised."""
    layouts = family.layouts(arch) if family.layouts else layouts_of(family.backbone)
    layouts = layouts if layout is None else [layout]
    native = parameters(create_abstract(family.backbone, arch, Execution()))
    converted = convert(groups, native, layouts)
    match = converted.match
    tensors = groups[match.wrapper]
    unused = {k: v for k, v in tensors.items() if k not in match.expected}
    return {"match": match, "params": converted.params, "unused": unused}


def _compare(
    name: str,
    ours: np.ndarray | None,
    reference: np.ndarray,
    tolerance: float,
    scale: float | None,
) -> Comparison:
    if ours is None:
        return Comparison(f"{name} (not covered)", float("nan"), float("nan"), tolerance)
    if ours.shape != reference.shape:
        shapes = f"{name} (shape {ours.shape}, expected {reference.shape})"
        return Comparison(shapes, float("nan"), float("nan"), tolerance)
    ours, finite = ours.astype(np.float64), np.isfinite(reference)
    if not np.array_equal(ours[~finite], reference[~finite], equal_nan=True):
        # What is undefined or infinite there must be so here.
        return Comparison(name, float("nan"), float("nan"), tolerance)
    absolute = float(np.abs(ours - reference)[finite].max(initial=0.0))
    largest = float(np.abs(reference[finite]).max(initial=0.0)) if scale is None else scale
    return Comparison(name, absolute, absolute / largest if absolute else 0.0, tolerance)


def _spec(case: _Case) -> BackboneSpec:
    return BackboneSpec(
        name=case.meta["name"],
        family=case.family.backbone,
        arch=case.arch,
        num_params=sum(value.size for value in case.params.values()),
        patch_size=case.meta["config"].get("patch_size", 1),
        image_size=case.meta["config"].get("img_size", 1),
        sources=(),
    )


def _provenance(case: _Case) -> Provenance:
    return Provenance(
        backbone=case.meta["name"],
        tag="parity",
        source="checkpoint.pth",
        source_sha256="",
        layout=case.match.layout.name,
        licence="unknown",
        converter="parity",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    failures = 0
    for folder in parser.parse_args().cases:
        try:
            comparisons = compare_case(folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failures += 1
            continue
        width = max(len(c.name) for c in comparisons)
        print(folder.name)
        for file in dict.fromkeys(c.file for c in comparisons):
            of_file = [c for c in comparisons if c.file == file]
            runs = ", ".join(dict.fromkeys(c.run for c in of_file))
            print(f"  {file}: {runs}\n  {'array':{width}}  absolute  relative  tolerance")
            for c in of_file:
                verdict = "" if c.passed else "  FAILED"
                print(
                    f"  {c.name:{width}}  {c.absolute:8.1e}  {c.relative:8.1e}  {c.tolerance:9.0e}"
                    f"{verdict}"
                )
        failed = sum(not c.passed for c in comparisons)
        failures += failed
        print(f"  {len(comparisons)} arrays, {failed} above tolerance\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
