"""Logistic regression on frozen features, with a grid of penalties fitted at once by L-BFGS.

The objective is that of `sklearn.linear_model.LogisticRegression`: the sum of the losses plus
`|w|^2 / (2 C)`, the intercept free; a softmax over the classes of a multi-class task, one sigmoid
for a binary task, and one for each class of a multi-label task. Features are standardised by the
training images first, so that one grid of `C` serves every backbone, whatever the scale of its
features.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fmi_jax import parallel
from fmi_jax.data.labels import class_membership
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.protocols.choice import at_an_end, choose_by_validation, every_image, of_features
from fmi_jax.protocols.judging import Judgement, SplitFeatures
from fmi_jax.protocols.spec import JudgeSpec
from fmi_jax.rules import different, positive
from fmi_jax.settings import BaseConfig, section
from fmi_jax.tasks.classification import Classification
from fmi_jax.tasks.registry import task_of


@dataclasses.dataclass(slots=True)
class LogisticConfig:
    """Logistic regression on frozen features (protocol `logistic`).

    Attributes:
      c: inverse strengths of the L2 penalty, as in scikit-learn; the best by validation is
        reported.
      max_iterations: most iterations of L-BFGS.
    """

    c: tuple[float, ...] = different((1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0))
    max_iterations: int = positive(1000)


_TOLERANCE = 1e-6  # of the largest entry of the gradient of the mean loss; float32 has 1e-7
_HIGHEST = jax.lax.Precision.HIGHEST


class Fit(NamedTuple):
    """Linear classifiers, one for each of `g` penalties, on features as they were given.

    Attributes:
      kernel: `[g, f, c]`; `c` is 1 for a binary task.
      bias: `[g, c]`.
      iterations: iterations of L-BFGS, `[g]`.
      converged: True if L-BFGS stopped because the gradient was small, `[g]`.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    def logits(self, features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "g n k"]:
        """Logits of every class under each penalty, in float64."""
        scores = np.tensordot(features, self.kernel, axes=([1], [1])).swapaxes(0, 1)
        scores += self.bias[:, None]
        one = scores.shape[-1] == 1  # the second of two classes against the first
        return np.concatenate([0 * scores, scores], axis=-1) if one else scores


def fit(
    features: Float[np.ndarray, "n f"],
    labels: np.ndarray,
    *,
    num_classes: int,
    c: Sequence[float],
    max_iterations: int,
    mesh: Mesh,
) -> Fit:
    """Fit a classifier for each penalty; the images are divided over the devices along "data".

    Each of `d` devices holds `4 ceil(n/d) (f + g c)` bytes, a few times over for the line search
    where `g c` is large, and 20 times the classifiers: the memory of L-BFGS.

    Args:
      features: features of the training images.
      labels: class index `[n]`, or 0 to 1 `[n, k]`.
      num_classes: `k`.
      c: inverse strengths of the penalty, as in scikit-learn.
      max_iterations: limit on the iterations of L-BFGS.
      mesh: the devices.
    """
    binary = labels.ndim == 1 and num_classes <= 2
    targets = labels[:, None] if binary else class_membership(labels, num_classes)
    count = len(features)
    rows = parallel.whole_shares(mesh, count)
    divided, everywhere = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    solve = jax.jit(
        functools.partial(_solve, softmax=labels.ndim == 1 and not binary, count=count),
        in_shardings=(divided, divided, everywhere, everywhere),
        out_shardings=everywhere,
    )
    mean, std, params, iterations, converged = jax.device_get(
        solve(
            parallel.place_rows(features, rows, divided),
            parallel.place_rows(targets, rows, divided),
            parallel.place(np.asarray(c, np.float32), everywhere),
            parallel.place(np.int32(max_iterations), everywhere),
        )
    )
    # Of the features as they are, in float64: what is far from zero loses nothing.
    kernel = params["kernel"].astype(np.float64) / std[:, None]
    bias = params["bias"] - np.einsum("f,gfc->gc", mean.astype(np.float64), kernel)
    return Fit(kernel, bias, iterations, converged)


def _solve(
    features: Array,
    targets: Array,
    c: Array,
    max_iterations: Array,
    *,
    softmax: bool,
    count: int,
) -> tuple[Any, ...]:
    there = (jnp.arange(len(features)) < count).astype(jnp.float32)[:, None]  # not padding
    mean = (there * features).sum(axis=0) / count
    std = jnp.sqrt((there * (features - mean) ** 2).sum(axis=0) / count)
    std = jnp.where(std > 0, std, 1)
    inputs = there * (features - mean) / std

    def objective(params: Any, c: Array) -> Array:
        logits = jnp.matmul(inputs, params["kernel"], precision=_HIGHEST) + params["bias"]
        if softmax:
            loss = optax.softmax_cross_entropy(logits, targets)[:, None]
        else:
            loss = optax.sigmoid_binary_cross_entropy(logits, targets)
        penalty = (params["kernel"] ** 2).sum() / (2 * c)
        return ((there * loss).sum() + penalty) / count

    def one(c: Array) -> tuple[Any, Array, Array]:
        value_of = functools.partial(objective, c=c)
        value_and_grad = optax.value_and_grad_from_state(value_of)
        optimizer = optax.lbfgs()

        def step(carry: Any) -> Any:
            params, state, _, iteration = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = optimizer.update(
                grad, state, params, value=value, grad=grad, value_fn=value_of
            )
            new = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
            return optax.apply_updates(params, updates), state, new, iteration + 1

        def unfinished(carry: Any) -> Array:
            _, _, steepest, iteration = carry
            return (steepest > _TOLERANCE) & (iteration < max_iterations)

        params = {
            "kernel": jnp.zeros((features.shape[1], targets.shape[1])),
            "bias": jnp.zeros(targets.shape[1]),
        }
        start = (params, optimizer.init(params), jnp.float32(jnp.inf), jnp.int32(0))
        params, _, steepest, iteration = jax.lax.while_loop(unfinished, step, start)
        return params, iteration, steepest <= _TOLERANCE

    return (mean, std, *jax.vmap(one)(c))


def judge(splits: Mapping[str, SplitFeatures], config: BaseConfig, info: DatasetInfo) -> Judgement:
    """Fit a classifier for every penalty, and choose by validation."""
    train, options = splits["train"], section(config, LogisticConfig)
    task = task_of(info)
    assert isinstance(task, Classification)
    found = fit(
        train.features,
        train.labels,
        num_classes=len(info.classes),
        c=options.c,
        max_iterations=options.max_iterations,
        mesh=parallel.make_mesh(config.train.model_parallel),
    )
    settings = [
        {"c": c, "iterations": int(iterations), "converged": bool(converged)}
        for c, iterations, converged in zip(
            options.c, found.iterations, found.converged, strict=True
        )
    ]

    def probabilities(split: SplitFeatures) -> np.ndarray:
        return np.stack([task.probabilities(each) for each in found.logits(split.features)])

    judgement = choose_by_validation(settings, probabilities, splits, config, info)
    return dataclasses.replace(judgement, notes=tuple(_notes(judgement.details["chosen"], options)))


def _notes(chosen: Mapping[str, Any], options: LogisticConfig) -> Iterator[str]:
    if not chosen["converged"]:
        yield (
            f"L-BFGS had not converged for C = {chosen['c']:g} after"
            f" logistic.max_iterations={options.max_iterations} steps."
        )
    if end := at_an_end("C", chosen["c"], options.c):
        yield end


SPEC = JudgeSpec(
    name="logistic",
    summary="logistic regression on frozen features",
    judge=of_features(judge),
    images=every_image,
    unknown=False,
    options=LogisticConfig,
    reads=("logistic",),
)
