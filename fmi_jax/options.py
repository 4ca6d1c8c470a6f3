"""Protocols and their parts in words, with the config fields that each of them reads."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import unknown_name
from fmi_jax.fields import within
from fmi_jax.protocols.registry import ADAPTS, FREE, HEADS, JUDGES, PROTOCOLS
from fmi_jax.protocols.spec import ProtocolSpec
from fmi_jax.settings import BaseConfig

_WIDTH, _INDENT = 80, " " * 6
_FREE = "any adaptation with any head"


def overview() -> str:
    """List every protocol, adaptation, head and judge with its summary."""
    groups = {
        "Protocols: --config.protocol=NAME": PROTOCOLS,
        f"Adaptations: --config.protocol={FREE} --config.adapt=NAME": ADAPTS,
        f"Heads: --config.protocol={FREE} --config.head=NAME": HEADS,
        "Judges: --config.judges=\"('NAME',)\", beside the protocol's own": JUDGES,
    }
    lines = []
    for title, registry in groups.items():
        summaries = {name: spec.summary for name, spec in registry.items()}
        summaries |= {FREE: _FREE} if registry is PROTOCOLS else {}
        lines += [title, *(f"  {name:<17} {text}" for name, text in summaries.items()), ""]
    return "\n".join([*lines, "Config fields that one reads: fmi-jax protocols NAME"])


def detail(name: str) -> str:
    """Describe a protocol, adaptation, head or judge, and every config field that it reads.

    Raises:
      UsageError: none has that name.
    """
    if name in PROTOCOLS:
        return "\n".join(_protocol(PROTOCOLS[name]))
    if name == FREE:
        reads = partial(within, names=("adapt", "head"))
        return "\n".join([f"{FREE} (protocol): {_FREE}", *_explained(reads)])
    for registry in (ADAPTS, HEADS, JUDGES):
        if name in registry:
            part = registry[name]
            heading = f"{name} ({registry.kind}): {part.summary}"
            return "\n".join([heading, *_explained(partial(within, names=part.reads))])
    known = dict.fromkeys((*PROTOCOLS, FREE, *ADAPTS, *HEADS, *JUDGES))
    raise unknown_name("protocol, adaptation, head or judge", name, known)


def document(kind: type) -> dict[str, str]:
    """Read the attributes that the docstrings of a class and its bases explain: text by name.

    Names that are explained together are one entry, with commas between them.
    """
    found: dict[str, str] = {}
    for each in kind.__mro__:
        _, _, attributes = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        entries = re.split(r"^(?=\S)", textwrap.dedent(attributes), flags=re.MULTILINE)
        pairs = (entry.partition(": ") for entry in entries)
        found |= {names: " ".join(text.split()) for names, _, text in pairs if text}
    return found


def _protocol(spec: ProtocolSpec) -> Iterator[str]:
    made = f", adapt={spec.fit.adapt} head={spec.fit.head}" if spec.fit and spec.fit.head else ""
    yield f"{spec.name} (protocol{made}): {spec.summary}"

    def own(field: str) -> bool:
        return any(within(field, part.reads) for part in spec.parts)

    yield from _explained(own)
    yield from ("", "It also reads, as other protocols do:")
    yield from _explained(lambda field: not own(field) and not within(field, spec.unread))


def _explained(reads: Callable[[str], bool]) -> Iterator[str]:
    """Lines on the config fields that are read: default and meaning, section by section."""
    config = ExperimentConfig()
    yield from _section("", config, BaseConfig, reads)
    for field in dataclasses.fields(config):
        values = getattr(config, field.name)
        if dataclasses.is_dataclass(values):
            yield from _section(f"{field.name}.", values, type(values), reads)


def _section(prefix: str, values: Any, kind: type, reads: Callable[[str], bool]) -> Iterator[str]:
    lines = []
    for names, text in document(kind).items():
        fields = [name for name in names.split(", ") if reads(prefix + name)]
        lines += [f"  {prefix}{name} = {getattr(values, name)!r}" for name in fields]
        if fields:
            lines += textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    if lines:
        heading = [inspect.cleandoc(kind.__doc__ or "").split("\n")[0]] if prefix else []
        yield from ("", *heading, *lines)
