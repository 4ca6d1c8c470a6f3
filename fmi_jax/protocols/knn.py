"""k nearest neighbours among the training images (paper, protocol 5).

Features are L2-normalised. The `k` training images of largest cosine `s` vote with weights
`exp(s / temperature)` that add up to 1; the share of a class is its probability, which no second
activation distorts (docs/protocols.md, B11, B12). The bank is the whole training split under the
evaluation transform (B9); `k` and `temperature` are lists (B14), and all pairs of them are judged
from one search. The study has one pair, 200 and 0.1, which gives the most frequent class to every
image of a small set; so the default is a choice by validation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from fmi_jax import parallel
from fmi_jax.data.labels import class_membership
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.protocols.choice import at_an_end, choose_by_validation, every_image, of_features
from fmi_jax.protocols.judging import Judgement, SplitFeatures
from fmi_jax.protocols.spec import JudgeSpec
from fmi_jax.rules import different
from fmi_jax.settings import BaseConfig, section


@dataclasses.dataclass(slots=True)
class KnnConfig:
    """Nearest neighbours among the training images (protocol `knn`).

    Attributes:
      k: numbers of neighbours; the best by validation is reported. Of the default, those above
        the number of training images are left out. The study has 200.
      temperature: temperatures in the weights `exp(cosine / temperature)`; every pair with a `k`
        is judged. The study has 0.1.
    """

    k: tuple[int, ...] = different((1, 5, 10, 20, 50, 100, 200), earlier=(200,))
    temperature: tuple[float, ...] = different((0.01, 0.03, 0.1), earlier=(0.1,))


CHUNK_BYTES = 2**29
"""Of scratch memory on each device: decides how many queries are searched for at once."""

_MAX_CHUNK = 1024
_HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would swap neighbours


def vote(
    bank: Float[np.ndarray, "n f"],
    targets: Float[np.ndarray, "n c"],
    queries: Float[np.ndarray, "q f"],
    *,
    k: Sequence[int],
    temperature: Sequence[float],
    mesh: Mesh,
) -> Float[np.ndarray, "s q c"]:
    """Class probabilities of every query, for each pair of `k` and `temperature` in turn.

    The bank is divided over the `d` devices along "data". Each finds the nearest of its own rows,
    and the nearest of these are the nearest of all, so the result does not depend on `d`. A device
    holds `4 ceil(n/d) (f + c)` bytes of bank and at most `CHUNK_BYTES` (or one query's share, if
    that is more) of scratch: for each query at a time `20 ceil(n/d)` for cosines and their
    sorting, and `4 K (d (c + 2) + s)` for the `K = max(k)` candidates of each device. The host
    holds one device's part of the bank beside what it was given.

    Args:
      bank: features of the training images; not normalised.
      targets: vote of each training image: one-hot, or 0 to 1 for every class.
      queries: features of the images to classify; not normalised.
      k: numbers of neighbours, at most `n`.
      temperature: positive.
      mesh: the devices.
    """
    (count, classes), settings = targets.shape, len(k) * len(temperature)
    devices = mesh.shape["data"]
    rows = parallel.whole_shares(mesh, count) // devices
    scratch = 20 * rows + 4 * max(k) * (devices * (classes + 2) + settings)
    chunk = max(1, min(CHUNK_BYTES // scratch, _MAX_CHUNK, len(queries)))
    divided, everywhere = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    held = jax.jit(_normalised, donate_argnums=0)(
        parallel.place_rows(bank, rows * devices, divided)
    )
    votes = parallel.place_rows(targets, rows * devices, divided)
    search = jax.jit(
        functools.partial(
            _search, count=count, k=tuple(k), temperature=tuple(temperature), mesh=mesh
        ),
        in_shardings=(divided, divided, everywhere),
        out_shardings=everywhere,
    )
    found = np.empty((settings, len(queries), classes), np.float32)
    for start in range(0, len(queries), chunk):
        part = parallel.place_rows(queries[start : start + chunk], chunk, everywhere)
        here = min(chunk, len(queries) - start)
        found[:, start : start + here] = jax.device_get(search(held, votes, part))[:, :here]
    return found


def _search(
    bank: Array,
    targets: Array,
    queries: Array,
    *,
    count: int,
    k: tuple[int, ...],
    temperature: tuple[float, ...],
    mesh: Mesh,
) -> Float[Array, "s q c"]:
    rows = bank.shape[0] // mesh.shape["data"]
    queries = _normalised(queries)

    def nearest(bank: Array, targets: Array, queries: Array) -> tuple[Array, Array]:
        cosine = jnp.matmul(queries, bank.T, precision=_HIGHEST)
        row = jax.lax.axis_index("data") * rows + jnp.arange(rows)
        cosine, at = jax.lax.top_k(jnp.where(row < count, cosine, -jnp.inf), min(max(k), rows))
        return cosine, targets[at]

    divided, candidates = PartitionSpec("data"), PartitionSpec(None, "data")
    cosine, votes = jax.shard_map(
        nearest,
        mesh=mesh,
        in_specs=(divided, divided, PartitionSpec()),
        out_specs=(candidates, candidates),
    )(bank, targets, queries)
    cosine, at = jax.lax.top_k(cosine, max(k))
    votes = jnp.take_along_axis(votes, at[..., None], axis=1)

    # Relative to the nearest: the weights are the same, and none is too large for float32.
    weights = jnp.exp((cosine - cosine[:, :1]) / jnp.array(temperature)[:, None, None])
    weights = weights * (jnp.arange(max(k)) < jnp.array(k)[:, None])[:, None, None]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    shares = jnp.einsum("atqk,qkc->atqc", weights, votes, precision=_HIGHEST)
    return jnp.clip(shares.reshape(-1, *shares.shape[2:]), 0, 1)


def _normalised(features: Float[Array, "n f"]) -> Float[Array, "n f"]:
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    return features / jnp.maximum(length, 1e-12)


def neighbours(config: BaseConfig, count: int) -> tuple[int, ...]:
    """List the numbers of neighbours to judge in a bank of `count` images."""
    k = section(config, KnnConfig).k
    return tuple(n for n in k if n <= count) if k == KnnConfig().k else k


def _check(config: BaseConfig, info: DatasetInfo) -> None:
    count = info.counts["train"]
    k = neighbours(config, count)
    if max(k) > count:
        raise UsageError(
            f"knn.k={k}: an image has no {max(k)} neighbours in a bank of {count}"
            f" training images; expected at most {count}."
        )


def judge(splits: Mapping[str, SplitFeatures], config: BaseConfig, info: DatasetInfo) -> Judgement:
    """Vote with every pair of `k` and `temperature`, and choose by validation."""
    bank, settings = splits["train"], section(config, KnnConfig)
    labels = class_membership(bank.labels, len(info.classes))
    ks = neighbours(config, len(bank.features))
    judgement = choose_by_validation(
        [
            {"k": k, "temperature": temperature}
            for k, temperature in itertools.product(ks, settings.temperature)
        ],
        lambda split: vote(
            bank.features,
            labels,
            split.features,
            k=ks,
            temperature=settings.temperature,
            mesh=parallel.make_mesh(config.train.model_parallel),
        ),
        splits,
        config,
        info,
    )
    chosen = judgement.details["chosen"]
    ends = (
        at_an_end("k", chosen["k"], ks, limits=(1, len(bank.features))),
        at_an_end("temperature", chosen["temperature"], settings.temperature),
    )
    return dataclasses.replace(judgement, notes=tuple(filter(None, ends)))


SPEC = JudgeSpec(
    name="knn",
    summary="k nearest neighbours of frozen features",
    judge=of_features(judge),
    images=every_image,
    unknown=False,
    small={"knn.k": (5, 20), "knn.temperature": (0.1,)},
    options=KnnConfig,
    reads=("knn",),
    check=_check,
)
