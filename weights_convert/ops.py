"""Changes of tensors on the way from one layout to another, and back.

An op takes the sources of a rule and returns its targets, all axes as PyTorch and Flax order
them. Ops use what numpy arrays and jax's have in common, so the same code moves numpy arrays and,
under `jax.eval_shape`, shapes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fmi_jax.errors import UserError


class Op(Protocol):
    """An invertible map from the source tensors of a rule to its targets.

    An op names as many tensors as it takes: type checkers read the arguments here as any.
    """

    def forward(self, *sources: Any, **_: Any) -> tuple[Any, ...]:
        """Targets from sources."""
        ...

    def inverse(self, *targets: Any, **_: Any) -> tuple[Any, ...]:
        """Sources from targets: `inverse(*forward(*x)) == x`."""
        ...


@dataclasses.dataclass(frozen=True)
class One:
    """An op on one tensor, made of a function and its inverse."""

    there: Callable[[Any], Any]
    back: Callable[[Any], Any]

    def forward(self, x: Any) -> tuple[Any, ...]:
        """The tensor of the layers."""
        return (self.there(x),)

    def inverse(self, x: Any) -> tuple[Any, ...]:
        """The tensor of the file."""
        return (self.back(x),)


def drop_axes(count: int) -> One:
    """One tensor without its `count` leading axes, which are of length 1."""
    return One(lambda x: x[(0,) * count], lambda x: x[(None,) * count])


SAME = One(lambda x: x, lambda x: x)
COUNTER = One(  # int64 as the widest integer that JAX has unasked
    lambda x: x.astype("int32"), lambda x: x.astype("int64")
)
LINEAR = One(lambda x: x.T, lambda x: x.T)  # [out, in] -> [in, out]
POINTWISE = One(  # [out, in, 1, 1] -> [in, out]: such a convolution is a linear layer
    lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
)
CONV2D = One(  # [out, in, h, w] -> [h, w, in, out]
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


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

    def inverse(self, x: Any) -> tuple[Any, ...]:
        """Cut into `parts`."""
        cuts = _namespace(x).split(x, self.parts, axis=-1)
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
        return *tokens, xp.concat([xp.zeros_like(positions[:, :1]), positions], axis=1)

    def inverse(self, *targets: Any) -> tuple[Any, ...]:
        """Add the first position to [cls] and take it from the table."""
        cls, *others, positions = targets
        return cls + positions[:, :1], *others, positions[:, 1:]


@dataclasses.dataclass(frozen=True)
class LinearWithZeroBias:
    """The weight and the bias of a linear layer to its kernel alone: the bias must be zero."""

    def forward(self, weight: Any, bias: Any) -> tuple[Any, ...]:
        """Transpose the weight; `UserError` for a bias that would be lost."""
        if isinstance(bias, np.ndarray) and bias.any():  # under eval_shape there are no values
            raise UserError(
                "the bias of the final projection is not zero, and this network has none there:"
                " the file was trained on with that layer as a classifier."
            )
        return (weight.T,)

    def inverse(self, kernel: Any) -> tuple[Any, ...]:
        """Transpose back, with a bias of zeros."""
        return kernel.T, _namespace(kernel).zeros_like(kernel[0])


def _namespace(x: Any) -> Any:
    return x.__array_namespace__()
