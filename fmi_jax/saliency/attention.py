"""Maps of attention: where the [cls] token of a vision transformer looks.

Nothing is recorded while a network runs: the attention of a block follows from the block's input,
and XLA shares what the two have in common. So the program of a network is the same whether or not
anybody asks where it looks.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.nn.attention import group_size, scores_of
from fmi_jax.nn.shards import local_share


def read_by_head(module: Any, images: Float[Array, "b h w c"]) -> tuple[Backbone, Array]:
    """Find the backbone whose features the head of a network reads, and compute its input.

    It is the transformer of a stacked classifier, which takes the tokens of its foundation.
    """
    if hasattr(module, "transformer"):
        return module.transformer, module.projector(module.tokens(images))
    return module.backbone, images


def block_inputs(backbone: Backbone, images: Float[Array, "b h w c"]) -> list[Array]:
    """Compute the input of every block."""
    count = len(backbone.blocks)
    return list(backbone.outputs(images, count - 1))


def weights(block: Any, x: Float[Array, "b n d"], tokens: slice) -> Float[Array, "b heads m n"]:
    """Attention of some tokens to all, each row of sum 1, in float32.

    Args:
      block: transformer block.
      x: input of the block.
      tokens: tokens whose attention is computed.
    """
    q, k, _ = block.attn.heads(block.norm1(x))
    return _softmax(q[:, :, tokens], k)


def cls_attention(
    backbone: Backbone, images: Float[Array, "b h w c"]
) -> Float[Array, "b heads rows cols"]:
    """Attention of [cls] to the patches in the last block, of each head.

    The attention to [cls] itself, to registers and to other tokens that are no part of the image
    is left out, and what remains is not scaled up.

    Reference: `get_last_selfattention` of facebookresearch/dino.
    """
    x = block_inputs(backbone, images)[-1]
    found = weights(backbone.blocks[-1], x, slice(0, 1))[:, :, 0]
    return on_grid(backbone, images, found)


def rollout(backbone: Backbone, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols"]:
    """Attention of [cls] to the patches through all blocks (Abnar & Zuidema 2020, equation 1).

    Each block passes on half of a token and half of what its heads attend to on average.
    """
    inputs = block_inputs(backbone, images)
    b, n, _ = inputs[0].shape
    cls = jnp.zeros((b, 1, n), jnp.float32).at[:, :, 0].set(1)
    return on_grid(backbone, images, rolled_out(backbone, inputs, cls)[:, 0])


def rolled_out(
    backbone: Backbone, inputs: list[Array], rows: Float[Array, "b m n"]
) -> Float[Array, "b m n"]:
    """Multiply rows by the rollout, a matrix `[b, n, n]` that is never held.

    Args:
      backbone: vision transformer.
      inputs: input of every block, from `block_inputs`.
      rows: shares of the tokens after the last block.
    """
    for block, x in zip(reversed(backbone.blocks), reversed(inputs), strict=True):
        rows = (rows + _through(block, x, rows)) / 2
    return rows


def _through(block: Any, x: Array, rows: Array) -> Array:
    """`rows` times the attention of a block, averaged over heads; some queries at a time."""
    q, k, _ = block.attn.heads(block.norm1(x))
    heads, n = q.shape[1:3]
    size = min(group_size(math.prod(local_share(*q.shape[:2])) * n), n)
    count = -(-n // size)
    filling = count * size - n  # rows of zeros: these queries add nothing
    q = jnp.pad(q, ((0, 0), (0, 0), (0, filling), (0, 0)))
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, filling)))
    q = jnp.moveaxis(q.reshape(len(q), heads, count, size, -1), 2, 0)
    rows = jnp.moveaxis(rows.reshape(*rows.shape[:2], count, size), 2, 0)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        some, shares = group
        mixed = jnp.einsum(
            "bmq,bhqk->bmk", shares, _softmax(some, k), precision=jax.lax.Precision.HIGHEST
        )
        return total + mixed / heads, None

    start = jnp.zeros((*rows.shape[1:3], n), jnp.float32)
    return jax.lax.scan(add, start, (q, rows))[0]


def _softmax(q: Array, k: Array) -> Array:
    return jax.nn.softmax(scores_of(q * q.shape[-1] ** -0.5, k))


def on_grid(
    backbone: Backbone, images: Float[Array, "b h w c"], found: Float[Array, "*b n"]
) -> Float[Array, "*b rows cols"]:
    """Values of the patches among those of all tokens, on the patch grid."""
    rows, cols = backbone.grid(images.shape[1], images.shape[2])
    return found[..., -rows * cols :].reshape(*found.shape[:-1], rows, cols)


def top_mass(found: Float[Array, "*b rows cols"], share: float) -> Float[Array, "*b rows cols"]:
    """Mask, 0 or 1, of the fewest patches that hold a share of a map's mass (paper, Figure 1).

    The patch that crosses the share is kept, as in `visualize_attention.py` of
    facebookresearch/dino.

    Args:
      found: maps without negative values; each has a mask of its own.
      share: share of the mass, from 0 to 1.
    """
    flat = found.reshape(*found.shape[:-2], -1)
    order = jnp.argsort(flat)
    ascending = jnp.take_along_axis(flat, order, -1)
    reached = jnp.cumsum(ascending / ascending.sum(axis=-1, keepdims=True), axis=-1)
    kept = jnp.take_along_axis(reached > 1 - share, jnp.argsort(order), -1)
    return kept.astype(jnp.float32).reshape(found.shape)
