"""One registry per kind of thing: a name leads to one spec."""

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from fmi_jax.errors import unknown_name


class Named(Protocol):
    """Anything that carries its own name."""

    @property
    def name(self) -> str:
        """The key in the registry."""
        ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from names to specs, filled once, in one place.

    Args:
      kind: what the specs describe, in the singular; used in messages.
      specs: the entries; two of one name raise `ValueError`.
    """

    def __init__(self, kind: str, specs: tuple[T, ...]):
        self.kind = kind
        self._specs: dict[str, T] = {}
        for spec in specs:
            if spec.name in self._specs:
                raise ValueError(f"two {kind} specs are named {spec.name!r}")
            self._specs[spec.name] = spec

    def __getitem__(self, name: str) -> T:
        """The spec of that name; an unknown name raises `UsageError` with the closest ones."""
        if name not in self._specs:
            raise unknown_name(self.kind, name, self._specs)
        return self._specs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
