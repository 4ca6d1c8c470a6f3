"""What happens to tensors on the way from one layout to another, and back.

An op takes the sources of a rule and returns its targets, all axes as PyTorch and Flax order
them. Ops use the array API alone, so the same code moves numpy arrays and, under
`jax.eval_shape`, shapes.
"""

import dataclasses
from typing import Any, Protocol


class Op(Protocol):
    """An invertible map from the source tensors of a rule to its targets."""

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Targets from sources."""
        ...

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Sources from targets: `inverse(*forward(*x)) == x`."""
        ...


@dataclasses.dataclass(frozen=True)
class Permute:
    """One tensor with its axes in another order; target axis `i` is source axis `axes[i]`."""

    axes: tuple[int, ...]

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Reorder."""
        (x,) = sources
        return (_permute(x, self.axes),)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Order as before."""
        (x,) = targets
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return (_permute(x, tuple(back)),)


@dataclasses.dataclass(frozen=True)
class Same:
    """One tensor as it is."""

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Unchanged."""
        return sources

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Unchanged."""
        return targets


@dataclasses.dataclass(frozen=True)
class Fuse:
    """`parts` equal tensors, each sent through `each`, laid side by side along the last axis.

    Separate query, key and value projections become one this way.
    """

    parts: int
    each: Op

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Join."""
        tensors = [self.each.forward(x)[0] for x in sources]
        return (_namespace(tensors[0]).concat(tensors, axis=-1),)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Cut into `parts`."""
        (x,) = targets
        step = x.shape[-1] // self.parts
        cuts = [x[..., i * step : (i + 1) * step] for i in range(self.parts)]
        return tuple(self.each.inverse(cut)[0] for cut in cuts)


@dataclasses.dataclass(frozen=True)
class UnfoldClsPosition:
    """([cls] token, others, positions of the patches) to the same with a position for [cls].

    Where a layout keeps [cls] with its position already added, that position is 0.
    """

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Put a zero position before the table."""
        *tokens, positions = sources
        xp = _namespace(positions)
        zero = xp.zeros_like(positions[:, :1])
        return *tokens, xp.concat([zero, positions], axis=1)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Add the first position to [cls] and take it from the table."""
        cls, *others, positions = targets
        return cls + positions[:, :1], *others, positions[:, 1:]


SAME = Same()
LINEAR = Permute((1, 0))  # [out, in] -> [in, out]
CONV2D = Permute((2, 3, 1, 0))  # [out, in, h, w] -> [h, w, in, out]


def _namespace(x: Any) -> Any:
    return x.__array_namespace__()


def _permute(x: Any, axes: tuple[int, ...]) -> Any:
    return _namespace(x).permute_dims(x, axes)
