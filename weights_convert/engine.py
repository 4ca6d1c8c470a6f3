"""Strict conversion: every key of a checkpoint is used or named as ignored, every native
parameter is filled exactly once, and one error lists everything that is off.

A layout is a table. Which keys a file must have follows backwards from the native parameters:
each is matched by a rule, and the inverse of the rule's op gives the names and shapes it is
made from. So one table serves every depth and width, and can be read in both directions.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from fmi_jax.errors import UserError
from fmi_jax.models.base import Backbone
from weights_convert.ops import CONV2D, COUNTER, LINEAR, SAME, Op, fuse

Shapes = Mapping[str, Any]
"""Anything with `shape` and `dtype`, by name: arrays, or `jax.ShapeDtypeStruct`."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """`targets = op.forward(*sources)`, for every value of the integer slots.

    Attributes:
      sources: keys of the checkpoint, with slots: "blocks.{i}.attn.qkv.weight"; of a plan, filled.
      targets: native names, with the same slots, but for those that the layout computes:
        "blocks.{i}.attn.qkv.kernel".
      op: change of the tensors on the way.
      absent: value of the sources in a file that has none of the sources of any such rule, because
        it is older than they are; None: the file must have them.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    op: Op
    absent: int | None = None


def same(source: str, target: str | None = None) -> tuple[Rule, ...]:
    """The rule for a tensor that keeps its axes (and its name, without `target`)."""
    return (Rule((source,), (target or source,), SAME),)


def norm(source: str, target: str) -> tuple[Rule, ...]:
    """The rules for a layer norm: `weight` is `scale`."""
    return same(f"{source}.weight", f"{target}.scale") + same(f"{source}.bias", f"{target}.bias")


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """The rules for a batch norm; before PyTorch 0.4.1 files had no counter of batches."""
    return (
        *norm(source, target),
        *same(f"{source}.running_mean", f"{target}.mean"),
        *same(f"{source}.running_var", f"{target}.var"),
        Rule((f"{source}.num_batches_tracked",), (f"{target}.count",), COUNTER, absent=0),
    )


def linear(source: str, target: str, op: Op = LINEAR, *, bias: bool = True) -> tuple[Rule, ...]:
    """The rules for a linear layer, or with `op=CONV2D` for a convolution."""
    kernel = Rule((f"{source}.weight",), (f"{target}.kernel",), op)
    return (kernel, *same(f"{source}.bias", f"{target}.bias")) if bias else (kernel,)


def conv2d(source: str, target: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """The rules for a convolution."""
    return linear(source, target, CONV2D, bias=bias)


def fused(sources: Sequence[str], target: str) -> tuple[Rule, ...]:
    """The rules for a linear layer that a file has in equal parts: queries, keys and values."""
    weights, biases = (tuple(f"{part}.{kind}" for part in sources) for kind in ("weight", "bias"))
    return (
        Rule(weights, (f"{target}.kernel",), fuse(len(sources), LINEAR)),
        Rule(biases, (f"{target}.bias",), fuse(len(sources), SAME)),
    )


@dataclasses.dataclass(frozen=True)
class Ignored:
    """A key that is left out on purpose, with slots; with a final dot, every key that starts so.

    Attributes:
      key: name of the key, or start of several.
      reason: explanation in words.
      zeros: shape of the tensor at an arch, for one that the publisher's network does not load
        without: it is exported as zeros.
    """

    key: str
    reason: str
    zeros: Callable[[Any], tuple[int, ...]] | None = None

    def covers(self, key: str) -> bool:
        """Test whether this names `key`."""
        pattern = _compile(self.key)
        return bool(pattern.match(key) if self.key.endswith(".") else pattern.fullmatch(key))


@dataclasses.dataclass(frozen=True)
class Head:
    """Place of the linear classifier in a layout.

    Attributes:
      key: name of the layer: "head" for "head.weight" and "head.bias".
      prefix: prefix of the backbone's keys beside it.
      unless: native parameter of the archs for which this is not so; "": none.
    """

    key: str
    prefix: str = ""
    unless: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Names that one publisher gives the parameters of a family.

    Attributes:
      name: name in the registry, in `WeightsSource.layout` and in converted files.
      title: publisher and kind of file, for people.
      family: the backbones it describes.
      rules: rules for all parameters; of several that could fill a native name the first holds.
      ignored: keys that may be there and are not used.
      beside: further keys that are not used, without the prefix where there is one: parts of a
        larger network whose own names are like those of the backbone.
      wrappers: entries of the file's top-level dict that may hold the tensors; "" is the top
        level itself.
      prefixes: strings that may stand before every key of the backbone.
      publishers: names of the writers, as `--export` takes them: "original", "hf", "timm". An
        exported file has the first of `wrappers` and of `prefixes`.
      computed: slots of sources that no target has, by name: each is a function of the target's
        slot `i` and of the number of values that it has.
      head: the linear classifier on the pooled feature, where the publisher's network has one
        that reads the same; trained heads are exported under it.
      buffers: `(arch, image_size)` to what the publisher's network for square images of that
        side in pixels keeps beside parameters and does not load without; exported with them.
    """

    name: str
    title: str
    family: type[Backbone]
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...] = ()
    beside: tuple[Ignored, ...] = ()
    wrappers: tuple[str, ...] = ("",)
    prefixes: tuple[str, ...] = ("",)
    publishers: tuple[str, ...] = ("original",)
    computed: Mapping[str, Callable[[int, int], int]] = dataclasses.field(default_factory=dict)
    head: Head | None = None
    buffers: Callable[[Any, int], Mapping[str, np.ndarray]] | None = None


def plan(layout: Layout, native: Iterable[str], prefix: str = "") -> list[Rule]:
    """The steps that fill every `native` name once, in order: rules without slots.

    Raises:
      UserError: the layout has no rule for a native name: it cannot express this arch.
      ValueError: the layout reads a source twice, for want of a slot.
    """
    names = dict.fromkeys(native)
    steps, filled = [], set()
    for rule in layout.rules:
        pattern = _compile(rule.targets[0])
        found = [match.groupdict() for name in names if (match := pattern.fullmatch(name))]
        count = len({slots.get("i") for slots in found})
        for slots in found:
            targets = tuple(target.format(**slots) for target in rule.targets)
            if any(target in filled or target not in names for target in targets):
                continue
            filled.update(targets)
            if "i" in slots:
                slots |= {n: f(int(slots["i"]), count) for n, f in layout.computed.items()}
            sources = tuple(prefix + source.format(**slots) for source in rule.sources)
            steps.append(dataclasses.replace(rule, sources=sources, targets=targets))
    if missing := [name for name in names if name not in filled]:
        raise UserError(
            f"layout {layout.name} cannot express this arch: no rule fills {_join(missing)}."
        )
    keys = collections.Counter(key for step in steps for key in step.sources)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise ValueError(f"layout {layout.name} reads twice: {_join(twice)}.")
    return steps


def source_shapes(steps: Sequence[Rule], native: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """The keys, shapes and types of the checkpoint that `steps` turn into `native`."""
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    for step in steps:
        targets = [_struct(native[name]) for name in step.targets]
        shapes.update(zip(step.sources, _inverse_shapes(step.op, *targets), strict=True))
    return shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """Comparison of the tensors of a file with a layout at a given arch.

    Attributes:
      layout, wrapper, prefix: the reading that was tried.
      steps: conversions to the native parameters.
      expected: every key that those read.
      missing, extra, misshaped, mistyped: keys that are off.
    """

    layout: Layout
    wrapper: str
    prefix: str
    steps: list[Rule]
    expected: Mapping[str, jax.ShapeDtypeStruct]
    missing: list[str]
    extra: list[str]
    misshaped: list[str]
    mistyped: list[str]

    @property
    def where(self) -> str:
        """The reading in words."""
        inside = f", in the entry {self.wrapper!r}" if self.wrapper else ""
        before = f", with the prefix {self.prefix!r}" if self.prefix else ""
        return f"{self.layout.name} ({self.layout.title}{inside}{before})"

    @property
    def fits(self) -> bool:
        """Whether nothing is off with names, shapes and types."""
        return not (self.missing or self.extra or self.misshaped or self.mistyped)

    def problems(self, not_finite: Sequence[str] = (), too_large: Sequence[str] = ()) -> list[str]:
        """List what is off, one clause each; empty if all fits."""
        kinds = {
            "missing": self.missing,
            "not expected": self.extra,
            "of another shape": self.misshaped,
            "of another type": self.mistyped,
            "with NaN or infinity": not_finite,
            "beyond int32": too_large,
        }
        return [f"{len(keys)} {kind}: {_join(keys)}" for kind, keys in kinds.items() if keys]


def match(groups: Mapping[str, Shapes], native: Shapes, layouts: Iterable[Layout]) -> list[Match]:
    """Every reading of a file, the best first.

    Args:
      groups: the tensors of each entry of the file's top-level dict, "" for tensors that lie
        there directly (`weights_convert.read`). Arrays, or shapes alone: nothing is computed.
      native: the parameters to fill (`fmi_jax.models.base.parameters`).
      layouts: layouts to try.
    """
    found = []
    for layout in layouts:
        wrappers = [wrapper for wrapper in layout.wrappers if wrapper in groups]
        for wrapper in wrappers or layout.wrappers[:1]:
            tensors = groups.get(wrapper, {})
            # Without a key under a prefix there is nothing to say about it.
            prefixes = [p for p in layout.prefixes if any(k.startswith(p) for k in tensors)]
            for prefix in prefixes or layout.prefixes[:1]:
                found.append(_match_one(layout, wrapper, prefix, tensors, native))
    return sorted(found, key=lambda m: (len(m.missing) + len(m.extra), not m.fits))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """Native parameters, float32, and the reading of the file that gave them."""

    params: dict[str, np.ndarray]
    match: Match


def convert(
    groups: Mapping[str, Mapping[str, np.ndarray]], native: Shapes, layouts: Iterable[Layout]
) -> Converted:
    """Convert the tensors of a file to the native parameters, those in half precision exactly.

    Args:
      groups, native, layouts: arguments of `match`, with arrays in `groups`.

    Raises:
      UserError: no layout fits. The message names the nearest and lists everything that is
        off with it: keys missing, not expected, of another shape or type, not finite.
    """
    best = match(groups, native, layouts)[0]
    held = groups.get(best.wrapper, {})
    # Values are looked at once the shape is right: a file of 1 MB may claim a tensor of 1 TB.
    tensors = {
        key: held[key].astype(_type(held[key]), copy=False)
        for key, value in best.expected.items()
        if key in held and tuple(held[key].shape) == value.shape
    }
    not_finite = [k for k, v in tensors.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    # Counters of PyTorch, which are counted on in int32.
    too_large = [
        k for k, v in tensors.items() if v.dtype == np.int64 and (np.abs(v) >= 2**31).any()
    ]
    if off := best.problems(not_finite, too_large):
        names = ", ".join(repr(name) for name in groups if name) or "no entry with tensors"
        inside = "" if best.wrapper in groups else f" The file holds {names}."
        raise UserError(
            "the file fits no known layout of this backbone."
            f" Nearest: {best.where}: {'; '.join(off)}.{inside}"
        )
    params: dict[str, np.ndarray] = {}
    for step in best.steps:
        sources = (
            tensors[key]
            if key in tensors
            else np.full(best.expected[key].shape, step.absent, best.expected[key].dtype)
            for key in step.sources
        )
        values = (np.asarray(value, order="C") for value in step.op.forward(*sources))
        params.update(zip(step.targets, values, strict=True))
    if wrong := [n for n in native if _struct(params[n]) != _struct(native[n])]:
        # The inverse of an op is not its inverse.
        raise AssertionError(f"{best.layout.name} misshapes {wrong}")
    return Converted(params=params, match=best)


def _match_one(layout: Layout, wrapper: str, prefix: str, tensors: Shapes, native: Shapes) -> Match:
    steps = plan(layout, native, prefix)
    expected = source_shapes(steps, native)

    def ignored(key: str) -> bool:
        inner = key.removeprefix(prefix)
        beside = () if key.startswith(prefix) else layout.beside
        return any(rule.covers(key) or rule.covers(inner) for rule in (*layout.ignored, *beside))

    both = [key for key in expected if key in tensors]
    optional = {key for step in steps if step.absent is not None for key in step.sources}
    # A file has either all of them or none.
    spared = optional if optional.isdisjoint(tensors) else ()
    return Match(
        layout=layout,
        wrapper=wrapper,
        prefix=prefix,
        steps=steps,
        expected=expected,
        missing=[key for key in expected if key not in tensors and key not in spared],
        extra=[key for key in tensors if key not in expected and not ignored(key)],
        misshaped=[
            f"{key} is {list(tensors[key].shape)} (expected {list(expected[key].shape)})"
            for key in both
            if tuple(tensors[key].shape) != expected[key].shape
        ],
        mistyped=[
            f"{key} is {tensors[key].dtype} (expected {expected[key].dtype})"
            for key in both
            if _type(tensors[key]) != expected[key].dtype
        ],
    )


_MOST_NAMED = 200  # no layout has as many keys that differ in more than block numbers
_HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def _type(x: Any) -> np.dtype:
    """The type that a tensor is converted as: half precision, which loses nothing, as float32."""
    return np.dtype(np.float32) if np.dtype(x.dtype) in _HALF else np.dtype(x.dtype)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(x.shape), np.dtype(x.dtype))


@functools.cache
def _inverse_shapes(op: Op, *targets: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Compute the shapes that `targets` are made from; a deep network asks again and again."""
    with jax.enable_x64(True):  # counters of PyTorch are int64
        return tuple(jax.eval_shape(op.inverse, *targets))


@functools.cache  # asked again for every key of a file
def _compile(pattern: str) -> re.Pattern[str]:
    """`blocks.{i}.ls1` as an expression whose groups are the slots."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern)))


def _join(keys: Sequence[str]) -> str:
    """Join keys, those that differ in block numbers alone as one: `blocks.{0-11}.ls1`.

    Of more than `_MOST_NAMED` the rest is counted.
    """
    groups: dict[str, list[int]] = {}
    for key in keys:
        number = re.search(r"(?<=\.)\d+(?=\.)", key)
        pattern = key if number is None else f"{key[: number.start()]}#{key[number.end() :]}"
        groups.setdefault(pattern, []).append(int(number[0]) if number else -1)
    named = [pattern.replace("#", _ranges(numbers), 1) for pattern, numbers in groups.items()]
    if len(named) > _MOST_NAMED:
        named[_MOST_NAMED:] = [f"and {len(named) - _MOST_NAMED} more"]
    return ", ".join(named)


def _ranges(numbers: Sequence[int]) -> str:
    """`3` for one number, `{0-2,5}` for several."""
    if len(numbers) == 1:
        return str(numbers[0])
    # Numbers that follow one another are equally far from their places.
    places = itertools.groupby(enumerate(sorted(numbers)), lambda at: at[1] - at[0])
    runs = [[number for _, number in run] for _, run in places]
    return "{" + ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) + "}"
