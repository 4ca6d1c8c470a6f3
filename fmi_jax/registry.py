"""Registry: a read-only mapping from names to specs, one per kind of spec."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from fmi_jax.errors import UsageError, unknown_name


class Named(Protocol):
    """Protocol of an object that has a name."""

    @property
    def name(self) -> str:
        """The key in the registry."""
        ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from names to specs, filled once, in one place.

    Args:
      kind: noun for one entry, in the singular; used in messages.
      specs: entries of the registry; two with the same name raise `ValueError`.
      refused: reason and nearest choice for each name that people ask for and that cannot be had.
    """

    def __init__(self, kind: str, specs: Sequence[T], refused: Mapping[str, str] | None = None):
        self.kind = kind
        self._refused = refused or {}
        self._specs: dict[str, T] = {}
        for spec in specs:
            if spec.name in self._specs:
                raise ValueError(f"two {kind} specs are named {spec.name!r}")
            self._specs[spec.name] = spec

    def __getitem__(self, name: str) -> T:
        """Look up a spec by name; an unknown name raises `UsageError` with the closest ones."""
        if name in self._refused:
            raise UsageError(f"{self.kind} {name!r} cannot be had: {self._refused[name]}")
        if name not in self._specs:
            raise unknown_name(self.kind, name, self._specs)
        return self._specs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
