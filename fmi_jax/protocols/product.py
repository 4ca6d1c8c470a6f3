"""Protocols as products: every adaptation of a backbone with every head."""

import dataclasses
from collections.abc import Callable

from flax import nnx

from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols.spec import AdaptSpec, Fit, FitSpec, HeadSpec, Parts
from fmi_jax.settings import BaseConfig


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

    def check(config: BaseConfig, info: object) -> None:
        for part in (adapt, head):
            part.check(config, info)  # type: ignore[arg-type]

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
        reads=(*adapt.reads, *head.reads),
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
