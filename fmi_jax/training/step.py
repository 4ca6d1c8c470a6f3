"""The jitted steps: one for training, one for evaluation, whatever the protocol."""

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
from fmi_jax.types import Task

_NETWORKS = ("backbone.", "transformer.")  # what computes in the compute type

Arrays = dict[str, Any]
Augment = Callable[[jax.Array, Array], Array]
"""`(keys [b], uint8 images) -> network input`, for training."""
Preprocess = Callable[[Array], Array]
"""`uint8 images -> network input`, for evaluation."""
Placement = Mapping[str, NamedSharding]
"""Where each array of the model lives, by name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes; frozen arrays are not in it.

    Attributes:
      step: steps done.
      params: what learns, by native name.
      stats: running statistics, by native name.
      opt_state: of the optimizer, for `params` only.
      learning_rate: after warm-up; the plateau schedule lowers it.
      seed: from which, with `step`, all randomness of a step follows.
      bad_step: the first step whose loss or gradient was not finite, or -1. From then on the
        state stands still, so that the parameters before it are never lost.
    """

    step: Any
    params: Arrays
    stats: Arrays
    opt_state: Any
    learning_rate: Any
    seed: Any
    bad_step: Any


def per_example_loss(task: Task, logits: Array, labels: Array) -> Float[Array, "b *g"]:
    """Cross entropy of each image: softmax, or the mean over classes of sigmoids."""
    if logits.ndim == 3:  # [b, g, k]: of each image and head, `[b, g]`
        return jax.vmap(per_example_loss, in_axes=(None, 1, None), out_axes=1)(task, logits, labels)
    if task is Task.MULTILABEL:
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def state_shardings(
    mesh: Mesh,
    partition: Partition,
    optimizer: optax.GradientTransformation,
    placement: Placement,
) -> TrainState:
    """Where each array of a train state lives."""
    everywhere = parallel.replicated(mesh)
    params = partition.shapes(partition.params)
    return TrainState(
        step=everywhere,
        params={name: placement[name] for name in partition.params},
        stats={name: placement[name] for name in partition.stats},
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
    """The state before the first step, from the arrays of the model that learn.

    Args:
      partition, arrays, optimizer, mesh, placement: as of `make_train_step`.
      learning_rate: after warm-up; `[g]` for models that stand side by side.
      seed: 0 to 2**32 - 1.
    """
    where = state_shardings(mesh, partition, optimizer, placement)
    params = {name: arrays[name] for name in partition.params}
    return TrainState(
        step=parallel.place(np.int32(0), where.step),
        params=params,
        stats={name: arrays[name] for name in partition.stats},
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
    task: Task,
    accumulate: int,
    mesh: Mesh,
    placement: Placement,
    dtype: Any,
) -> Callable[[TrainState, Arrays, Arrays], tuple[TrainState, dict[str, Any]]]:
    """The step `(state, frozen, batch) -> (state, scalars)`; `state` is donated.

    Randomness is a function of `(state.seed, state.step)` and of an image's place in the batch,
    never of how the batch is cut into devices or micro-batches. Scalars: `loss` (mean over the
    batch), `grad_norm` (before clipping), `learning_rate`.

    A model whose logits are `[b, g, k]` is `g` models that share what is frozen: every parameter
    has them as its first axis, the scalars and `state.learning_rate` are `[g]`, and none sees
    the loss of another (`classifiers.head_grid`, with `side_by_side` of an optimizer).

    Every device computes its own share of the batch (`parallel.by_shard`). What crosses devices
    are gradients, once for a batch, and parameters that are divided.

    Args:
      partition: the model.
      optimizer: its updates are multiplied by the learning rate.
      schedule: share of the full learning rate by step, for the scalars.
      augment: makes the network's input from prepared images.
      task: decides the loss.
      accumulate: micro-batches per step.
      mesh: the devices.
      placement: sharding of each array of the model.
      dtype: compute type of the networks, in which gradients of their matrices are summed over
        devices.
    """

    # Running statistics are the same on every device, and come whole.
    divided = {name: placement[name] for name in (*partition.params, *partition.frozen)}

    def loss_and_grads(
        params: Arrays, stats: Arrays, frozen: Arrays, batch: Arrays, keys: Any, dropout: Any
    ) -> tuple[Any, Arrays, Arrays]:
        images = augment(keys, batch["images"])

        def summed_loss(params: Arrays) -> tuple[Any, tuple[Any, Arrays]]:
            model = partition.merge(params, stats, frozen, placement=divided)
            logits = model(images, rngs=nnx.Rngs(dropout=dropout))
            losses = per_example_loss(task, logits, batch["labels"])
            loss = jnp.einsum("b...,b->...", losses, batch["mask"])
            return loss.sum(), (loss, partition.read(model, partition.stats))

        grads, (loss, stats) = jax.grad(summed_loss, has_aux=True)(params)
        return loss, stats, grads

    def micro_batches(x: Array) -> Array:
        # Row i*k+j goes to micro-batch j: every device cuts its own rows, nothing moves.
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def summed(name: str, grad: Array) -> Array:
        """The gradient over all devices, from that of this one's images."""
        if parallel.data_axis(placement[name]) is not None:
            return grad  # summed when it was scattered
        # Matrices of the networks cross in the type they are used in, at half the bytes.
        narrow = grad.ndim > 1 and name.startswith(_NETWORKS)
        return batch_sum(grad.astype(dtype) if narrow else grad).astype(grad.dtype)

    def gradients(
        none: Array,
        params: Arrays,
        stats: Arrays,
        frozen: Arrays,
        batch: Arrays,
        keys: Any,
        dropout: Any,
    ) -> tuple[Any, Arrays, Arrays]:
        """Loss and gradients summed over the batch, from this device's share of it."""
        if accumulate == 1:
            loss, stats, grads = loss_and_grads(params, stats, frozen, batch, keys, dropout)
        else:

            def one(carry: Any, part: Any) -> tuple[Any, None]:
                loss, stats, grads = carry
                micro, micro_keys, micro_dropout = part
                more, stats, new = loss_and_grads(
                    params, stats, frozen, micro, micro_keys, micro_dropout
                )
                return (loss + more, stats, jax.tree.map(jnp.add, grads, new)), None

            parts = (
                jax.tree.map(micro_batches, batch),
                micro_batches(keys),
                jax.random.split(dropout, accumulate),
            )
            zeros = jax.tree.map(jnp.zeros_like, params)
            (loss, stats, grads), _ = jax.lax.scan(one, (none, stats, zeros), parts)
        # Once, whatever the number of micro-batches.
        grads = {name: summed(name, grad) for name, grad in grads.items()}
        return batch_sum(loss), stats, grads

    whole, shared = PartitionSpec(), PartitionSpec(DATA)
    learning = {name: placement[name] for name in partition.params}
    frozen_placement = {name: placement[name] for name in partition.frozen}
    gradients_by_shard = parallel.by_shard(
        mesh,
        gradients,
        in_specs=(whole, learning, whole, frozen_placement, shared, shared, whole),
        out_specs=(whole, whole, learning),
    )

    def step(state: TrainState, frozen: Arrays, batch: Arrays) -> tuple[TrainState, dict[str, Any]]:
        augment_key, dropout_key = jax.random.split(
            jax.random.fold_in(jax.random.key(state.seed), state.step)
        )
        keys = jax.random.split(augment_key, batch["mask"].shape[0])
        none = jnp.zeros_like(state.learning_rate)
        loss, stats, grads = gradients_by_shard(
            none, state.params, state.stats, frozen, batch, keys, dropout_key
        )
        count = jnp.maximum(batch["mask"].sum(), 1)
        loss = loss / count
        grads = jax.tree.map(lambda g: g / count, grads)
        each = jax.vmap if loss.ndim else lambda function: function
        norm = each(optax.tree.norm)(grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = each(optax.tree.scale)(state.learning_rate, updates)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss).all() & jnp.isfinite(norm).all()
        good = finite & (state.bad_step < 0)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            stats=keep(stats, state.stats),
            opt_state=keep(opt_state, state.opt_state),
            learning_rate=state.learning_rate,
            seed=state.seed,
            bad_step=jnp.where(finite | (state.bad_step >= 0), state.bad_step, state.step),
        )
        rate = schedule(state.step) * state.learning_rate
        return new_state, {"loss": loss, "grad_norm": norm, "learning_rate": rate}

    state_placement = state_shardings(mesh, partition, optimizer, placement)
    return jax.jit(
        step,
        in_shardings=(state_placement, frozen_placement, parallel.batch_sharding(mesh)),
        out_shardings=(state_placement, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(
    partition: Partition, preprocess: Preprocess, *, mesh: Mesh, placement: Placement
) -> Callable[[Arrays, Arrays], Arrays]:
    """The step `(arrays, batch) -> {"logits", "labels", "mask", "index"}`.

    `arrays` are all arrays of the model by name. What comes back is whole on every process, so
    that each can put the split together.
    """

    def logits_of(arrays: Arrays, images: Array) -> Array:
        model = partition.merge(arrays, placement=placement)
        return model(preprocess(images), rngs=None).astype(jnp.float32)

    by_shard = parallel.by_shard(
        mesh,
        logits_of,
        in_specs=(dict(placement), PartitionSpec(DATA)),
        out_specs=PartitionSpec(DATA),
    )

    def step(arrays: Arrays, batch: Arrays) -> Arrays:
        logits = by_shard(arrays, batch["images"])
        return {"logits": logits, **{k: batch[k] for k in ("labels", "mask", "index")}}

    return jax.jit(
        step,
        in_shardings=(dict(placement), parallel.batch_sharding(mesh)),
        out_shardings=parallel.replicated(mesh),
    )
