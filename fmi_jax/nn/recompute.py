"""Control of what is computed twice: activations again in the backward pass instead of being kept,
and an expensive value once where XLA would compute it for each of its readers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Leaves = dict[int, Any]


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(x, *rest)`, for whose backward pass nothing is kept but its arguments.

    `jax.checkpoint`, except on a CPU: XLA drops the barriers there that `jax.checkpoint` relies
    on, sees that all is computed twice, and keeps the first. Here the second time is behind a
    wall of its own, where what it needs lives no longer than it does.

    Args:
      function: takes an activation and trees of arrays, and closes over none.
    """
    if jax.default_backend() != "cpu":
        return jax.checkpoint(function)

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        results = jax.tree.structure(jax.eval_shape(function, *args))

        def of_leaves(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

        return jax.tree.unflatten(results, _call(of_leaves, *leaves))

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(function: Callable[..., list[Any]], *args: Any) -> list[Any]:
    return function(*args)


def _forward(function: Callable[..., list[Any]], *args: Any) -> tuple[list[Any], Any]:
    moved = {i: arg.value for i, arg in enumerate(args) if arg.perturbed}
    fixed = {i: arg.value for i, arg in enumerate(args) if not arg.perturbed}
    return function(*(arg.value for arg in args)), (moved, fixed)


def _backward(
    function: Callable[..., list[Any]], kept: tuple[Leaves, Leaves], cotangents: list[Any]
) -> tuple[Any, ...]:
    given = {i: ct for i, ct in enumerate(cotangents) if not isinstance(ct, SymbolicZero)}
    moved, fixed = kept

    def gradients(moved: Leaves, fixed: Leaves, given: Leaves) -> Leaves:
        def results(moved: Leaves) -> Leaves:
            args = moved | fixed
            values = function(*(args[i] for i in range(len(args))))
            return {i: values[i] for i in given}

        # No gradient by what does not learn, such as the kernels under LoRA's adapters.
        return jax.vjp(results, moved)[1](given)[0]

    found = compute_once(gradients, moved, fixed, given)
    return tuple(found.get(i) for i in range(len(moved) + len(fixed)))


_call.defvjp(_forward, _backward, symbolic_zeros=True)


def compute_once(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, trees of arrays, held in memory before anything reads it; to be
    differentiated by hand.

    XLA on a CPU fuses an elementwise computation into each of its readers, which is cheap for
    a sum and ruinous for one of fifty terms that three readers compute anew. Neither
    `jax.lax.optimization_barrier` nor `jax.checkpoint` keeps it from that; a branch does, if the
    compiler does not see that it is always taken.
    """
    always = jax.lax.optimization_barrier(jnp.bool_(True))
    results = jax.eval_shape(function, *args)

    def never(*_: Any) -> Any:
        return jax.tree.map(lambda result: jnp.zeros(result.shape, result.dtype), results)

    return jax.lax.cond(always, function, never, *args)
