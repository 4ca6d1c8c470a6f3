"""All protocols by name: adaptations, heads, judges, and pairs of the first two with a name."""

import copy
import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import TypeVar

from flax import nnx

from fmi_jax import augment
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError, unknown_name
from fmi_jax.fields import differences, set_fields, within
from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols import (
    byol,
    cka,
    dino,
    knn,
    logistic,
    mae,
    saliency,
    simsiam,
    timing,
)
from fmi_jax.protocols.adapt import (
    frozen,
    full,
    lora,
    partial,
)
from fmi_jax.protocols.heads import (
    attentive,
    decoder,
    head_grid,
    linear,
    per_patch,
    stacked,
    unet,
    upernet,
)
from fmi_jax.protocols.spec import (
    AdaptSpec,
    Fit,
    FitSpec,
    HeadSpec,
    JudgeSpec,
    Part,
    Parts,
    ProtocolSpec,
)
from fmi_jax.registry import Registry
from fmi_jax.rules import earlier_defaults
from fmi_jax.settings import BaseConfig

_Config = TypeVar("_Config", bound=BaseConfig)

ADAPTS: Registry[AdaptSpec] = Registry(
    "adapt",
    [
        frozen.SPEC,
        full.SPEC,
        partial.SPEC,
        lora.SPEC,
    ],
)
HEADS: Registry[HeadSpec] = Registry(
    "head",
    [
        linear.SPEC,
        stacked.SPEC,
        attentive.SPEC,
        head_grid.SPEC,
        per_patch.SPEC,
        decoder.SPEC,
        upernet.SPEC,
        unet.SPEC,
    ],
)
JUDGES: Registry[JudgeSpec] = Registry(
    "judge",
    [
        knn.SPEC,
        logistic.SPEC,
        cka.SPEC,
        timing.SPEC,
        saliency.SPEC,
    ],
)
FITS: Registry[FitSpec] = Registry(
    "fit",
    [
        dino.SPEC,
        byol.SPEC,
        simsiam.SPEC,
        mae.SPEC,
    ],
)
"""Protocols whose fit is no pair of an adaptation and a head."""

SUPERVISED = ("loss", "data.sampling", "views", "train.augment_validation", "train.select_by")
"""Sections and fields that whatever trains by the labels reads."""

_PARTS: tuple[Part, ...] = (
    *ADAPTS.values(),
    *HEADS.values(),
    *FITS.values(),
    *JUDGES.values(),
)

PAIRS = {
    "linear_probe": ("frozen", "linear"),
    "finetune": ("full", "linear"),
    "stacked_probe": ("frozen", "deit"),
    "stacked_finetune": ("full", "deit"),
    "partial": ("partial", "linear"),
    "stacked_partial": ("partial", "deit"),
    "attentive_probe": ("frozen", "attentive"),
    "lora": ("lora", "linear"),
    "probe_grid": ("frozen", "grid"),
}
"""Pairs of adaptation and head that have a name: the studies' protocols, and three more."""

DEFAULT = "finetune"
"""Protocol of a config that names none."""

FREE = "fit"
"""Value of `config.protocol` for the pair that `adapt` and `head` name."""


def combine(name: str, adapt: AdaptSpec, head: HeadSpec) -> FitSpec:
    """Make what a protocol of this name trains of an adaptation and a head.

    Raises:
      UsageError: the head stands on features that do not change, and those of the adaptation do.
    """
    if head.heads is not None and not adapt.frozen:
        raise UsageError(
            f"head={head.name!r} stands on features that do not change: expected adapt=frozen, got"
            f" {adapt.name!r}."
        )

    def check(config: BaseConfig, info: DatasetInfo) -> None:
        for part in (adapt, head):
            part.check(config, info)
        augment.check_views(config, info.label, info.size)
        if config.views.name != "center" and head.on_features(config) is not None:
            raise UsageError(
                f"views.name={config.views.name!r}: head {head.name!r} reads kept features of the"
                " centre crop; expected 'center', or a head that sees images."
            )

    return FitSpec(
        name=name,
        summary=f"{adapt.summary}, {head.summary}",
        fit=lambda config, arch: _fit(adapt, head, config, arch),
        adapt=adapt.name,
        head=head.name,
        transformer=head.transformer,
        labels=head.labels,
        judge=head.judge,
        variants=head.variants,
        small={**adapt.small, **head.small},
        reads=(*adapt.reads, *head.reads, *SUPERVISED),
        ignores=(*adapt.ignores, *head.ignores),
        check=check,
    )


def _fit(adapt: AdaptSpec, head: HeadSpec, config: BaseConfig, arch: ArchConfig) -> Fit:
    of_backbone: Callable[[str], bool] = adapt.learns(config, arch)

    def learns(name: str) -> bool:
        return of_backbone(name) if name.startswith("backbone.") else not head.follows(name)

    def module(parts: Parts) -> nnx.Module:
        # The order decides what is drawn: backbone and transformer, adapters, head.
        if adapt.change is not None:
            adapt.change(parts)
        return head.build(dataclasses.replace(parts, eval_mode=adapt.eval_mode))

    return Fit(
        module=module,
        learns=learns,
        follows=head.follows,
        heads=() if head.heads is None else head.heads(config),
        on_features=head.on_features(config),
        merge=adapt.merge,
    )


def _protocol(
    name: str, summary: str, fit: FitSpec | None, judges: Sequence[JudgeSpec]
) -> ProtocolSpec:
    """Make a protocol, with what it does not read."""
    own = () if fit is None else (fit,)
    parts: tuple[Part, ...] = (*own, *judges)
    read = {name for part in parts for name in part.reads}
    owned = dict.fromkeys((*(name for part in _PARTS for name in part.reads), *SUPERVISED))
    ignored = dict.fromkeys(name for part in parts for name in part.ignores)
    return ProtocolSpec(
        name=name,
        summary=summary,
        fit=fit,
        judges=(*(each.judge for each in own), *judges),
        unread=[
            *(name for name in owned if name not in read),
            *(name for name in ignored if all(within(name, part.ignores) for part in parts)),
        ],
    )


_TRAINED = (
    *(combine(name, ADAPTS[adapt], HEADS[head]) for name, (adapt, head) in PAIRS.items()),
    *FITS.values(),
)
PROTOCOLS: Registry[ProtocolSpec] = Registry(
    "protocol",
    [
        *(_protocol(fit.name, fit.summary, fit, ()) for fit in _TRAINED),
        *(_protocol(judge.name, judge.summary, None, (judge,)) for judge in JUDGES.values()),
    ],
)
"""Every protocol with a name: pairs, fits of their own, and judges of a backbone as it is."""


def resolved(config: _Config) -> _Config:
    """Write a config's protocol in one way: a pair that has a name under its name alone.

    Raises:
      UsageError: `protocol`, `adapt`, `head` and `judges` name nothing, contradict each other, or
        make no sense together.
    """
    name, adapt, head = config.protocol, config.adapt, config.head
    _check_judges(config)
    if name == FREE:
        missing = [field for field, value in (("adapt", adapt), ("head", head)) if not value]
        if missing:
            raise UsageError(
                f"protocol {FREE!r} needs {' and '.join(missing)}: expected adapt of"
                f" {', '.join(ADAPTS)} and head of {', '.join(HEADS)}."
            )
        combine(FREE, ADAPTS[adapt], HEADS[head])  # refuses a pair that makes no sense
        names = {pair: preset for preset, pair in PAIRS.items()}
        if (adapt, head) not in names:
            return config
        return dataclasses.replace(config, protocol=names[adapt, head], adapt="", head="")
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, (*PROTOCOLS, FREE))
    asked = {field: value for field, value in (("adapt", adapt), ("head", head)) if value}
    if asked and name not in PAIRS:
        words = " and ".join(f"{field}={value!r}" for field, value in asked.items())
        raise UsageError(
            f"{words}: protocol {name!r} trains no adapt x head; leave {' and '.join(asked)} empty."
        )
    if asked:
        _check_preset(name, asked)
    return dataclasses.replace(config, adapt="", head="")


def _check_preset(name: str, asked: dict[str, str]) -> None:
    """Refuse an adaptation or a head beside a preset that is made of another."""
    own: dict[str, str] = dict(zip(("adapt", "head"), PAIRS[name], strict=True))
    for registry, value in ((ADAPTS, asked.get("adapt")), (HEADS, asked.get("head"))):
        if value and value not in registry:
            raise unknown_name(registry.kind, value, registry)
    wrong = {field: value for field, value in asked.items() if value != own[field]}
    if not wrong:
        return
    pair = {**own, **asked}
    words = " and ".join(f"{field}={value!r}" for field, value in wrong.items())
    named = [preset for preset, parts in PAIRS.items() if parts == (pair["adapt"], pair["head"])]
    instead = (
        f"protocol={named[0]!r}"
        if named
        else f"protocol={FREE!r} with adapt={pair['adapt']} and head={pair['head']}"
    )
    verb = "contradict" if len(wrong) > 1 else "contradicts"
    raise UsageError(
        f"{words} {verb} protocol {name!r}, which is adapt={own['adapt']} with"
        f" head={own['head']}: expected {instead}, or {' and '.join(wrong)} empty."
    )


def _check_judges(config: BaseConfig) -> None:
    for i, name in enumerate(config.judges):
        if JUDGES[name].name == config.protocol or name in config.judges[:i]:
            raise UsageError(
                f"judges={config.judges!r}: {name!r} judges already; expected each judge once."
            )


def protocol_of(config: BaseConfig) -> ProtocolSpec:
    """Find the protocol of an experiment, the judges that it adds among its own.

    Raises:
      UsageError: see `resolved`.
    """
    config = resolved(config)
    added = [JUDGES[name] for name in config.judges]
    if config.protocol == FREE:
        fit = combine(FREE, ADAPTS[config.adapt], HEADS[config.head])
        return _protocol(FREE, fit.summary, fit, added)
    found = PROTOCOLS[config.protocol]
    if not added:
        return found
    return _protocol(
        found.name, found.summary, found.fit, (*(found.judges if not found.fit else ()), *added)
    )


def check(config: BaseConfig, info: DatasetInfo) -> None:
    """Raise `UsageError` where a config does not fit the data."""
    protocol = protocol_of(config)
    for part in protocol.parts:
        if info.label is Label.NONE and info.label not in part.labels:
            able = [name for name, spec in FITS.items() if info.label in spec.labels]
            raise UsageError(
                f"{part.name!r} needs labels, and {info.name!r} has none: expected a protocol that"
                f" pre-trains without labels ({', '.join(able)}), whose backbone goes on to a"
                " labelled data set by backbone.run."
            )
        if info.label not in part.labels:
            raise UsageError(_no_such_labels(protocol, part, info))
        if not part.unknown and any(info.unknown_counts.get("train", ())):
            raise UsageError(
                f"judge {part.name!r} needs every label of the training images, and some of"
                f" {info.name!r} are not known: expected a data set whose labels are all known, or"
                f" a protocol that trains by the loss, such as {next(iter(PAIRS))!r}."
            )
        part.check(config, info)


def _no_such_labels(protocol: ProtocolSpec, part: Part, info: DatasetInfo) -> str:
    head = protocol.fit.head if protocol.fit is not None and part is protocol.fit else ""
    kind, name, others = ("head", head, HEADS) if head else ("judge", part.name, JUDGES)
    fit = [other for other, spec in others.items() if info.label in spec.labels]
    return (
        f"{kind} {name!r} is for {_in_words(part.labels)}, and the labels of {info.name!r} are"
        f" {_in_words([info.label])}: expected {kind} {' or '.join(map(repr, fit))}."
    )


def _in_words(labels: Sequence[Label]) -> str:
    return " or ".join(dict.fromkeys(label.words for label in labels))


def alone(config: _Config) -> _Config:
    """Make the experiment of one of several heads that train side by side, as if it were alone."""
    fit = protocol_of(config).fit
    assert fit is not None
    head, config, default = HEADS[fit.head], copy.deepcopy(config), type(config)()
    set_fields(config, {name: operator.attrgetter(name)(default) for name in head.reads})
    config = dataclasses.replace(config, protocol=FREE, adapt=fit.adapt, head=head.alone)
    return resolved(config)


def check_read(config: BaseConfig) -> None:
    """Raise `UsageError` if `config` sets something that only other protocols read."""
    protocol = protocol_of(config)
    owned = {name for part in _PARTS for name in part.reads} | {*SUPERVISED}
    others = set(protocol.unread) & owned
    default = type(config)()
    set_fields(default, earlier_defaults(default))
    earlier = differences(default, config)
    changed = [
        name
        for name in differences(type(config)(), config)
        if within(name, others) and name in earlier
    ]
    if changed:
        made = "" if protocol.name != FREE else f" (adapt={config.adapt}, head={config.head})"
        raise UsageError(
            f"protocol {protocol.name!r}{made} does not read {', '.join(changed)}: expected the"
            " default there, or a protocol that reads it."
        )
