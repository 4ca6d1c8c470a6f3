"""Maps of attention: where the [cls] token of a vision transformer looks, or all tokens do.

Nothing is recorded while a network runs: the attention of a block follows from the block's input,
and XLA shares what the two have in common. So the program of a network is the same whether or not
anybody asks where it looks.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.nn.attention import group_size, scores_of
from fmi_jax.nn.shards import gathered, local_share
from fmi_jax.nn.stage import Stage, pad_map


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


def whole(backbone: Backbone, block: Any) -> Any:
    """A block with whole parameters, of which devices may hold parts until the block runs."""
    graphdef, state = nnx.split(block)
    return nnx.merge(graphdef, gathered(state, backbone.execution.dtype))


def last_block(backbone: Backbone, images: Float[Array, "b h w c"]) -> tuple[Any, Array]:
    """Find the last block, of stages that of the last stage, and compute its input."""
    x = block_inputs(backbone, images)[-1]
    block = whole(backbone, backbone.blocks[-1])
    if isinstance(block, Stage):
        if block.downsample is not None:
            x = block.downsample(x)
        for earlier in list(block.blocks)[:-1]:
            x = earlier(x, None)
        block = block.blocks[-1]
    return block, x


def weights(block: Any, x: Float[Array, "b n d"], tokens: slice) -> Float[Array, "b heads m n"]:
    """Attention of some tokens to all, each row of sum 1, in float32.

    Args:
      block: transformer block.
      x: input of the block.
      tokens: tokens whose attention is computed.
    """
    q, k = _queries_and_keys(block, x)
    return jax.nn.softmax(scores_of(q[:, :, tokens], k))


def cls_attention(
    backbone: Backbone, images: Float[Array, "b h w c"]
) -> Float[Array, "b heads rows cols"]:
    """Attention of [cls] to the patches in the last block, of each head.

    The attention to [cls] itself, to registers and to other tokens that are no part of the image
    is left out, and what remains is not scaled up.

    Reference: `get_last_selfattention` of facebookresearch/dino.
    """
    found = weights(*last_block(backbone, images), slice(0, 1))[:, :, 0]
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
        mixed = _through(*_queries_and_keys(whole(backbone, block), x), rows)
        rows = (rows + mixed.mean(axis=1)) / 2
    return rows


def received_attention(
    backbone: Backbone, images: Float[Array, "b h w c"]
) -> Float[Array, "b heads rows cols"]:
    """Attention of all tokens to each in the last block, on average, of each head.

    For a network whose feature is the mean of its tokens: the last attention adds the values of
    the tokens to that mean with these weights. The block must attend to the whole map
    (`attends_to_all`): within windows every mean is the same.
    """
    block, x = last_block(backbone, images)
    x = block.norm1(x)
    b, h, w, _ = x.shape
    if block.attn.window is None:
        q, k = block.attn.folded(x)
    else:
        x = pad_map(x, block.attn.window)
        q, k, _ = (part[:, 0].astype(jnp.float32) for part in block.attn.heads(x))
        bias = jnp.broadcast_to(block.attn.bias(), (*q.shape[:3], k.shape[2]))
        itself = jnp.broadcast_to(jnp.eye(k.shape[2]), bias.shape)
        q = jnp.concatenate([q * q.shape[-1] ** -0.5, bias], axis=-1)
        k = jnp.concatenate([k, itself], axis=-1)
    asking = np.zeros(x.shape[1:3], np.float32)
    asking[:h, :w] = 1 / (h * w)  # padding receives attention and asks for none
    rows = jnp.broadcast_to(asking.reshape(1, 1, -1), (b, 1, asking.size))
    return _through(q, k, rows)[:, :, 0].reshape(b, -1, *asking.shape)[..., :h, :w]


def attends_to_all(backbone: Backbone, images: Float[Array, "b h w c"]) -> bool:
    """Test whether tokens of the last block see the whole map, and not a window of it."""
    block, x = last_block(backbone, images)
    return block.attn.window is None or max(x.shape[1:3]) <= block.attn.window


def _queries_and_keys(block: Any, x: Array) -> tuple[Array, Array]:
    """Queries, scaled already, and keys of a block of a sequence of tokens."""
    q, k, _ = block.attn.heads(block.norm1(x))
    return q * q.shape[-1] ** -0.5, k


def _through(
    q: Float[Array, "b heads n d"], k: Float[Array, "b heads n d"], rows: Float[Array, "b m n"]
) -> Float[Array, "b heads m n"]:
    """`rows` times the attention of each head; some queries at a time."""
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
        attention = jax.nn.softmax(scores_of(some, k))
        mixed = jnp.einsum("bmq,bhqk->bhmk", shares, attention, precision=jax.lax.Precision.HIGHEST)
        return total + mixed, None

    start = jnp.zeros((k.shape[0], heads, rows.shape[2], n), jnp.float32)
    return jax.lax.scan(add, start, (q, rows))[0]


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
