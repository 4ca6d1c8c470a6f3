"""The jitted training and evaluation steps, the same for every protocol."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from fmi_jax import parallel
from fmi_jax.nn.shards import DATA, batch_sum
from fmi_jax.training.partition import Partition

_NETWORKS = ("backbone.", "transformer.")  # modules that compute in the compute type

Arrays = dict[str, Any]
Augment = Callable[[jax.Array, Arrays], Arrays]
"""`(keys [b], batch of prepared images) -> batch`, whose "inputs" are the network's input: an
array or several views. Labels that are maps are transformed with the images."""
Preprocess = Callable[[Array], Array]
"""`uint8 images -> network input`, for evaluation."""
Outputs = Callable[[Any, Arrays], tuple[Any, Arrays]]
"""`(module, batch of prepared images) -> (the module's outputs, batch)`, for evaluation: over all
views of an image. The batch has the labels that the outputs are measured by."""
Loss = Callable[[Any, Arrays], tuple[Float[Array, "b *g"], dict[str, Float[Array, "b ..."]]]]
"""`(outputs, batch) -> (loss of each image, seen)`. `seen` holds more quantities of each image;
their means over the whole batch update a follower or are logged."""
Measure = Callable[[Any, Arrays], Arrays]
"""`(outputs, batch) -> contribution of each image to the metrics`, by name."""
Follow = Callable[[Arrays, Arrays, Arrays, Array], Arrays]
"""`(params, followers, seen, step) -> followers that change`, called after an update."""
Logged = Callable[[Arrays], Arrays]
"""`means of seen -> scalars`, to be written with the loss."""
Placement = Mapping[str, NamedSharding]
"""Sharding of each array of the model, by name."""


Sums = tuple[Any, Arrays]  # losses and `seen`, summed over images


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes; excludes frozen arrays.

    Attributes:
      step: steps done.
      params: parameters that learn, by native name.
      followers: arrays that change without a gradient, by native name.
      opt_state: optimizer state, for `params` only.
      learning_rate: full learning rate, reached after warm-up; the plateau schedule lowers it.
      seed: random seed; all randomness of a step follows from it and `step`.
      bad_step: first step whose loss or gradient was not finite, or -1. From that step on nothing
        but `step` changes, so the last good parameters are never lost.
    """

    step: Any
    params: Arrays
    followers: Arrays
    opt_state: Any
    learning_rate: Any
    seed: Any
    bad_step: Any


def nothing_seen(seen: Arrays) -> Arrays:
    """Log nothing of what a loss has seen."""
    del seen
    return {}


def on_inputs(change: Callable[[jax.Array, Array], Any]) -> Augment:
    """Make an `Augment` from a change of the inputs alone, `(keys, images) -> inputs`."""
    return lambda keys, batch: batch | {"inputs": change(keys, batch["inputs"])}


def state_shardings(
    mesh: Mesh,
    partition: Partition,
    optimizer: optax.GradientTransformation,
    placement: Placement,
) -> TrainState:
    """Sharding of each array of a train state."""
    everywhere = parallel.replicated(mesh)
    params = partition.shapes(partition.params)
    return TrainState(
        step=everywhere,
        params={name: placement[name] for name in partition.params},
        followers={name: placement[name] for name in partition.followers},
        opt_state=parallel.like_parameters(mesh, jax.eval_shape(optimizer.init, params), placement),
        learning_rate=everywhere,
        seed=everywhere,
        bad_step=everywhere,
    )


def initial_state(
    partition: Partition,
    arrays: Arrays,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    placement: Placement,
    *,
    learning_rate: Any,
    seed: int,
) -> TrainState:
    """Make the state before the first step, from the arrays of the model that learn.

    Args:
      partition, arrays, optimizer, mesh, placement: same as for `make_train_step`; `arrays` are
        those of the model by name.
      learning_rate: full rate after warm-up; `[g]` for models that stand side by side.
      seed: random seed, 0 to 2**32 - 1.
    """
    where = state_shardings(mesh, partition, optimizer, placement)
    params = {name: arrays[name] for name in partition.params}
    return TrainState(
        step=parallel.place(np.int32(0), where.step),
        params=params,
        followers={name: arrays[name] for name in partition.followers},
        opt_state=jax.jit(optimizer.init, out_shardings=where.opt_state)(params),
        learning_rate=parallel.place(np.asarray(learning_rate, np.float32), where.learning_rate),
        seed=parallel.place(np.uint32(seed), where.seed),
        bad_step=parallel.place(np.int32(-1), where.bad_step),
    )


def make_train_step(
    partition: Partition,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    augment: Augment,
    *,
    loss: Loss,
    accumulate: int,
    mesh: Mesh,
    placement: Placement,
    dtype: Any,
    follow: Follow | None = None,
    logged: Logged = nothing_seen,
) -> Callable[[TrainState, Arrays, Arrays], tuple[TrainState, dict[str, Any]]]:
    """Make the training step `(state, frozen, batch) -> (state, scalars)`; `state` is donated.

    Randomness is a function of `(state.seed, state.step)` and of an image's place in the batch,
    never of how the batch is cut into devices or micro-batches. Scalars: `loss` (mean over the
    batch), `grad_norm` (before clipping), `learning_rate`, and those `logged`.

    A model whose losses are `[b, g]` is `g` models that share their frozen arrays: every parameter
    has them as its first axis, the scalars and `state.learning_rate` are `[g]`, and none sees the
    loss of another (`protocols.heads.head_grid`, `side_by_side.each`, `optim.side_by_side`).

    Followers change at one of three moments: running statistics in the forward pass, one
    micro-batch after the other; the results of `follow` after the update; all others between
    steps, by the loop.

    Every device computes its own share of the batch (`parallel.by_shard`). Only gradients, once
    per batch, and divided parameters cross devices.

    Args:
      partition: structure of the model and role of its arrays.
      optimizer: update rule; its updates are multiplied by the learning rate.
      schedule: share of the full learning rate by step, for the scalars.
      augment: function that makes the network's inputs from prepared images.
      loss: function that computes each image's loss, and quantities whose batch means are needed.
      accumulate: micro-batches per step.
      mesh: device mesh.
      placement: sharding of each array of the model.
      dtype: compute type of the networks, in which gradients of their matrices are summed over
        devices.
      follow: function that computes the followers that change after an update; None if there are
        none.
      logged: function that makes more scalars of the means of `seen`.
    """

    running = partition.running
    still = tuple(n for n in (*partition.followers, *partition.frozen) if n not in running)
    learning = {name: placement[name] for name in partition.params}
    rest_placement = {name: placement[name] for name in still}

    def loss_and_grads(
        params: Arrays, stats: Arrays, rest: Arrays, batch: Arrays, keys: Any, dropout: Any
    ) -> tuple[Sums, Arrays, Arrays]:
        batch = augment(keys, batch)

        def summed_loss(params: Arrays) -> tuple[Any, tuple[Sums, Arrays]]:
            # Running statistics are the same on every device and arrive whole.
            model = partition.merge(params, stats, rest, placement=learning | rest_placement)
            outputs = model(batch["inputs"], rngs=nnx.Rngs(dropout=dropout))
            each = loss(outputs, batch)
            sums = jax.tree.map(lambda x: jnp.einsum("b...,b->...", x, batch["mask"]), each)
            return sums[0].sum(), (sums, partition.read(model, running))

        grads, (sums, stats) = jax.grad(summed_loss, has_aux=True)(params)
        return sums, stats, grads

    def micro_batches(x: Array) -> Array:
        # Row i*k+j goes to micro-batch j: every device cuts its own rows, nothing moves.
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def summed(name: str, grad: Array) -> Array:
        """Sum a gradient over all devices, each of which has that of its own images."""
        if parallel.data_axis(placement[name]) is not None:
            return grad  # already summed when it was scattered
        # Gradients of the networks' matrices cross in the compute type, at half the bytes.
        narrow = grad.ndim > 1 and name.startswith(_NETWORKS)
        return batch_sum(grad.astype(dtype) if narrow else grad).astype(grad.dtype)

    def gradients(
        none: Array,
        params: Arrays,
        stats: Arrays,
        rest: Arrays,
        batch: Arrays,
        keys: Any,
        dropout: Any,
    ) -> tuple[Sums, Arrays, Arrays]:
        """Compute sums and gradients over the batch, from this device's share of it."""
        if accumulate == 1:
            sums, stats, grads = loss_and_grads(params, stats, rest, batch, keys, dropout)
        else:

            def one(carry: Any, part: Any) -> tuple[Any, Arrays]:
                losses, stats, grads = carry
                (more, seen), stats, new = loss_and_grads(params, stats, rest, *part)
                return (losses + more, stats, jax.tree.map(jnp.add, grads, new)), seen

            parts = (
                jax.tree.map(micro_batches, batch),
                micro_batches(keys),
                jax.random.split(dropout, accumulate),
            )
            zeros = jax.tree.map(jnp.zeros_like, params)
            (losses, stats, grads), seen = jax.lax.scan(one, (none, stats, zeros), parts)
            sums = losses, jax.tree.map(lambda x: x.sum(0), seen)
        # Sum over devices once, whatever the number of micro-batches.
        grads = {name: summed(name, grad) for name, grad in grads.items()}
        return jax.tree.map(batch_sum, sums), stats, grads

    whole, shared = PartitionSpec(), PartitionSpec(DATA)
    frozen_placement = {name: placement[name] for name in partition.frozen}
    gradients_by_shard = parallel.by_shard(
        mesh,
        gradients,
        in_specs=(whole, learning, whole, rest_placement, shared, shared, whole),
        out_specs=(whole, whole, learning),
    )

    def step(state: TrainState, frozen: Arrays, batch: Arrays) -> tuple[TrainState, dict[str, Any]]:
        augment_key, dropout_key = jax.random.split(
            jax.random.fold_in(jax.random.key(state.seed), state.step)
        )
        keys = jax.random.split(augment_key, batch["mask"].shape[0])
        none = jnp.zeros_like(state.learning_rate)
        stats = {name: state.followers[name] for name in running}
        rest = {name: x for name, x in state.followers.items() if name not in running} | frozen
        (loss, seen), stats, grads = gradients_by_shard(
            none, state.params, stats, rest, batch, keys, dropout_key
        )
        count = jnp.maximum(batch["mask"].sum(), 1)
        loss = loss / count
        seen = jax.tree.map(lambda x: x / count, seen)
        grads = jax.tree.map(lambda g: g / count, grads)
        each = jax.vmap if loss.ndim else lambda function: function
        norm = each(optax.tree.norm)(grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = each(optax.tree.scale)(state.learning_rate, updates)
        params: Any = optax.apply_updates(state.params, updates)
        followers = state.followers | stats
        if follow is not None:
            followers |= follow(params, followers, seen, state.step)
        finite = jnp.isfinite(loss).all() & jnp.isfinite(norm).all()
        good = finite & (state.bad_step < 0)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            followers=keep(followers, state.followers),
            opt_state=keep(opt_state, state.opt_state),
            learning_rate=state.learning_rate,
            seed=state.seed,
            bad_step=jnp.where(finite | (state.bad_step >= 0), state.bad_step, state.step),
        )
        rate = schedule(state.step) * state.learning_rate
        scalars = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        return new_state, scalars | logged(seen)

    state_placement = state_shardings(mesh, partition, optimizer, placement)
    return jax.jit(
        step,
        in_shardings=(state_placement, frozen_placement, parallel.batch_sharding(mesh)),
        out_shardings=(state_placement, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(
    partition: Partition,
    outputs: Outputs,
    *,
    measure: Measure,
    mesh: Mesh,
    placement: Placement,
) -> Callable[[Arrays, Arrays], Arrays]:
    """Make the evaluation step `(arrays, batch) -> measured`, with the batch's "mask" and "index".

    `arrays` are all arrays of the model by name. The results are whole on every process, so that
    each can assemble the split.

    Args:
      partition: the model.
      outputs: computes the network's outputs from a batch of prepared images.
      measure: reduces the outputs to what each image contributes to the metrics.
      mesh: the devices.
      placement: sharding of each array of the model.
    """

    def measured(arrays: Arrays, batch: Arrays) -> Arrays:
        model = partition.merge(arrays, placement=placement)
        found, batch = outputs(model, batch)
        found = jax.tree.map(lambda x: x.astype(jnp.float32), found)
        return measure(found, batch) | {name: batch[name] for name in ("mask", "index")}

    by_shard = parallel.by_shard(
        mesh,
        measured,
        in_specs=(dict(placement), PartitionSpec(DATA)),
        out_specs=PartitionSpec(DATA),
    )

    def step(arrays: Arrays, batch: Arrays) -> Arrays:
        return by_shard(arrays, batch)

    return jax.jit(
        step,
        in_shardings=(dict(placement), parallel.batch_sharding(mesh)),
        out_shardings=parallel.replicated(mesh),
    )
