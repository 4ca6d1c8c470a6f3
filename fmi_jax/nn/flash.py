"""Flash attention: cuDNN's on NVIDIA GPUs, Pallas' splash attention on TPUs.

Both compute the scores tile by tile in both passes and never hold all of them. Neither has run on
the hardware it is for: they were compiled for H200 and v5e, and splash attention was computed in
Pallas' interpreter. `backbone.attention=plain` turns them off.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.nn import hardware
from fmi_jax.nn.shards import per_device

Kernel = Callable[[Array, Array, Array, float, int], Array]
"""`(q, k, v, scale, length)`, heads before tokens, as `attention.dot_product_attention`."""

_LANES = 128  # tokens in a tile of a TPU: blocks of splash attention are multiples of it
_MANY = 1024  # tokens, from which on a tile more is little
_SPLASH_FROM = 192  # tokens; with fewer, splash attention would compute more padding than tokens
_BLOCK = 1024  # largest block of queries or keys there
_FEW = 8  # queries; fewer, such as [cls] alone, have no square of scores


def pad_tokens(x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """`x` with tokens of padding at its end, as many as kernels and matrix units want.

    Up to a multiple of a TPU's tile where there are many tokens, and of 8, the least that cuDNN's
    attention and tensor cores take, where a tile more would be much. On a CPU nothing is padded.
    Once, before the first block: otherwise XLA pads and cuts around every product.
    """
    if hardware.platform() == "cpu":
        return x
    n = x.shape[1]
    return jnp.pad(x, ((0, 0), (0, -n % (_LANES if n >= _MANY else 8)), (0, 0)))


def kernel_for(dtype: Any, queries: int, keys: int, width: int) -> Kernel | None:
    """The flash attention that takes so many queries and keys, so wide, on this hardware.

    None where there is none, or too few tokens for it to pay.
    """
    if dtype not in (jnp.bfloat16, jnp.float16) or queries < _FEW or width > widest():
        return None
    if hardware.platform() == "gpu":
        return _cudnn if width % 8 == 0 else None
    return splash if min(queries, keys) >= _SPLASH_FROM else None


def widest() -> int:
    """Widest head that flash attention takes on this hardware; 0 where there is none."""
    if hardware.platform() != "gpu":
        return 256 if hardware.platform() == "tpu" else 0
    capability = hardware.compute_capability()
    if capability is None or capability < (8, 0):
        return 0
    return 256 if capability >= (9, 0) else 128


def _cudnn(q: Array, k: Array, v: Array, scale: float, length: int) -> Array:
    """cuDNN's flash attention. It takes even numbers of tokens in training, and values as wide
    as queries."""
    (n, d), e = q.shape[2:], v.shape[-1]
    q, k, v = (_to_multiple(x, 8) for x in (q, k, v))
    k, v = _without_padding(k, length), _without_padding(v, length)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, d - e)))

    def attend(q: Array, k: Array, v: Array) -> Array:
        lengths: dict[str, Any] = {}
        if length < k.shape[1]:  # of queries all: their rows are computed, and cut off at the end
            lengths = {
                "query_seq_lengths": jnp.full(q.shape[0], q.shape[1], jnp.int32),
                "key_value_seq_lengths": jnp.full(q.shape[0], length, jnp.int32),
            }
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn", **lengths)

    y = per_device(attend, *(jnp.moveaxis(x, 1, 2) for x in (q, k, v)), heads=2)
    return jnp.moveaxis(y, 2, 1)[:, :, :n, :e]


def splash(
    q: Float[Array, "b heads n d"],
    k: Float[Array, "b heads m d"],
    v: Float[Array, "b heads m e"],
    scale: float,
    length: int,
    *,
    interpret: bool = False,
) -> Float[Array, "b heads n e"]:
    """Pallas' splash attention, which a TPU compiles.

    Args:
      q, k, v, scale, length: see `attention.dot_product_attention`.
      interpret: compute it in Pallas' interpreter, on any hardware.
    """
    # Here, as Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
        splash_attention_mask as masks,
    )

    n = q.shape[2]
    q, k, v = (_to_multiple(x, _LANES) for x in (q * scale, k, v))
    k, v = _without_padding(k, length), _without_padding(v, length)
    rows, cols = _block(q.shape[2]), _block(k.shape[2])
    sizes = kernels.BlockSizes(
        block_q=rows,
        block_kv=cols,
        block_kv_compute=cols,
        block_q_dkv=rows,
        block_kv_dkv=cols,
        block_kv_dkv_compute=cols,
        block_q_dq=rows,
        block_kv_dq=cols,
    )

    def attend(q: Array, k: Array, v: Array) -> Array:
        kernel = kernels.make_splash_mha(
            mask=masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * q.shape[1]),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=sizes,
            interpret=interpret,
        )
        ids = None
        if length < k.shape[2]:
            # Queries of padding attend as well: a row without any key would be 0 / 0.
            ids = kernels.SegmentIds(
                q=jnp.ones(q.shape[2], jnp.int32),
                kv=(jnp.arange(k.shape[2]) < length).astype(jnp.int32),
            )
        one: Callable[..., Any] = lambda q, k, v: kernel(q, k, v, segment_ids=ids)  # noqa: E731
        return jax.vmap(one)(q, k, v)

    return per_device(_of_narrow_products(attend), q, k, v, heads=1)[:, :, :n]


def _of_narrow_products(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """`kernel`, whose products have the precision of their operands in both passes: Pallas has no
    other for bfloat16, whatever is asked of products of float32 (`runtime.configure`)."""
    narrow = functools.partial(jax.default_matmul_precision, "default")

    @jax.custom_vjp
    def call(*args: Array) -> Array:
        with narrow():
            return kernel(*args)

    def forward(*args: Array) -> Any:
        with narrow():
            return jax.vjp(kernel, *args)

    def backward(pull: Callable[[Array], tuple[Array, ...]], dy: Array) -> tuple[Array, ...]:
        with narrow():
            return pull(dy)

    call.defvjp(forward, backward)
    return call


def _block(tokens: int) -> int:
    """The largest block that divides a padded number of tokens."""
    tiles = tokens // _LANES
    return max(i for i in range(1, _BLOCK // _LANES + 1) if tiles % i == 0) * _LANES


def _to_multiple(x: Float[Array, "b h n d"], multiple: int) -> Float[Array, "b h m d"]:
    more = -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) if more else x


def _without_padding(x: Float[Array, "b h m d"], length: int) -> Float[Array, "b h m d"]:
    """`x` with zeros after `length`: a kernel may multiply what it masks with a weight of zero,
    and padding may hold anything."""
    if length == x.shape[2]:
        return x
    return jnp.where((jnp.arange(x.shape[2]) < length)[:, None], x, 0)
