"""Changes of tensors on the way from one layout to another, and back.

An op takes the sources of a rule and returns its targets, all axes as PyTorch and Flax order
them. Ops use what numpy arrays and jax's have in common, so the same code moves numpy arrays and,
under `jax.eval_shape`, shapes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fmi_jax.errors import UserError


class Op(NamedTuple):
    """An invertible map from the source tensors of a rule to its targets.

    Attributes:
      forward: function from sources to targets.
      inverse: function from targets to sources: `inverse(*forward(*x)) == x`.
    """

    forward: Callable[..., tuple[Any, ...]]
    inverse: Callable[..., tuple[Any, ...]]


def one(there: Callable[[Any], Any], back: Callable[[Any], Any]) -> Op:
    """An op on one tensor, made of a function and its inverse."""
    return Op(lambda x: (there(x),), lambda x: (back(x),))


def drop_axes(count: int) -> Op:
    """One tensor without its `count` leading axes, which are of length 1."""
    return one(lambda x: x[(0,) * count], lambda x: x[(None,) * count])


SAME = one(lambda x: x, lambda x: x)
COUNTER = one(  # int64 as the widest integer that JAX has unasked
    lambda x: x.astype("int32"), lambda x: x.astype("int64")
)
LINEAR = one(lambda x: x.T, lambda x: x.T)  # [out, in] -> [in, out]
POINTWISE = one(  # [out, in, 1, 1] -> [in, out]: such a convolution is a linear layer
    lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
)
CONV2D = one(  # [out, in, h, w] -> [h, w, in, out]
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


def fuse(parts: int, each: Op) -> Op:
    """`parts` equal tensors, each sent through `each`, laid side by side along the last axis.

    Separate query, key and value projections become one this way.
    """

    def join(*sources: Any) -> tuple[Any, ...]:
        tensors = [each.forward(x)[0] for x in sources]
        return (_namespace(tensors[0]).concat(tensors, axis=-1),)

    def cut(x: Any) -> tuple[Any, ...]:
        return tuple(each.inverse(part)[0] for part in _namespace(x).split(x, parts, axis=-1))

    return Op(join, cut)


def _with_cls_position(*sources: Any) -> tuple[Any, ...]:
    """Put a zero position before the table."""
    *tokens, positions = sources
    xp = _namespace(positions)
    return *tokens, xp.concat([xp.zeros_like(positions[:, :1]), positions], axis=1)


def _without_cls_position(*targets: Any) -> tuple[Any, ...]:
    """Add the first position to [cls] and take it from the table."""
    cls, *others, positions = targets
    return cls + positions[:, :1], *others, positions[:, 1:]


# ([cls] token, others, positions of the patches) to the same with a position for [cls]: where a
# layout keeps [cls] with its position already added, that position is 0.
UNFOLD_CLS_POSITION = Op(_with_cls_position, _without_cls_position)


def _without_zero_bias(weight: Any, bias: Any) -> tuple[Any, ...]:
    """Transpose the weight; `UserError` for a bias that would be lost."""
    if isinstance(bias, np.ndarray) and bias.any():  # under eval_shape there are no values
        raise UserError(
            "the bias of the final projection is not zero, and this network has none there:"
            " the file was trained on with that layer as a classifier."
        )
    return (weight.T,)


# The weight and the bias of a linear layer to its kernel alone: the bias must be zero.
LINEAR_WITH_ZERO_BIAS = Op(
    _without_zero_bias, lambda kernel: (kernel.T, _namespace(kernel).zeros_like(kernel[0]))
)


def _one_of_equal(first: Any, second: Any) -> tuple[Any, ...]:
    """Keep one of two equal tensors; `UserError` where they differ and one would be lost."""
    if isinstance(first, np.ndarray) and not np.array_equal(first, second):
        raise UserError(
            "the file has one layer under two names with different values; expected equal ones."
        )
    return (first,)


# A tensor that a file has under two names.
SAME_TWICE = Op(_one_of_equal, lambda x: (x, x))


def _namespace(x: Any) -> Any:
    return x.__array_namespace__()
