"""Changes of tensors on the way from one layout to another, and back.

An op takes the sources of a rule and returns its targets, all axes as PyTorch and Flax order
them. Ops use the array API alone, so the same code moves numpy arrays and, under
`jax.eval_shape`, shapes.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np

from fmi_jax.errors import UserError


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
class Pointwise:
    """A 1x1 convolution `[out, in, 1, 1]` as the linear layer `[in, out]` that it is."""

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Drop the axes of the kernel's sides."""
        (x,) = sources
        return (_permute(x[:, :, 0, 0], (1, 0)),)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Put them back."""
        (x,) = targets
        return (_permute(x, (1, 0))[:, :, None, None],)


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


@dataclasses.dataclass(frozen=True)
class DropAxes:
    """One tensor without its `count` leading axes, which are of length 1."""

    count: int

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Take them away."""
        (x,) = sources
        return (x[(0,) * self.count],)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Put them back."""
        (x,) = targets
        return (x[(None,) * self.count],)


@dataclasses.dataclass(frozen=True)
class LinearWithZeroBias:
    """The weight and the bias of a linear layer to its kernel alone: the bias must be zero."""

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Transpose the weight; `UserError` for a bias that would be lost."""
        weight, bias = sources
        if isinstance(bias, np.ndarray) and bias.any():  # under eval_shape there are no values
            raise UserError(
                "the bias of the final projection is not zero, and this network has none there:"
                " the file was trained on with that layer as a classifier."
            )
        return (_permute(weight, (1, 0)),)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Transpose back, with a bias of zeros."""
        (kernel,) = targets
        return _permute(kernel, (1, 0)), _namespace(kernel).zeros_like(kernel[0])


@dataclasses.dataclass(frozen=True)
class Narrow:
    """One int64 tensor as int32, the widest integer that JAX has unasked."""

    def forward(self, *sources: Any) -> tuple[Any, ...]:
        """Convert to int32."""
        (x,) = sources
        return (_namespace(x).astype(x, "int32"),)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Convert to int64."""
        (x,) = targets
        return (_namespace(x).astype(x, "int64"),)


SAME = Same()
COUNTER = Narrow()
LINEAR = Permute((1, 0))  # [out, in] -> [in, out]
POINTWISE = Pointwise()
CONV2D = Permute((2, 3, 1, 0))  # [out, in, h, w] -> [h, w, in, out]


def _namespace(x: Any) -> Any:
    return x.__array_namespace__()


def _permute(x: Any, axes: tuple[int, ...]) -> Any:
    return _namespace(x).permute_dims(x, axes)
