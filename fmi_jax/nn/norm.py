"""Layer normalisation, and batch normalisation with the running statistics that PyTorch keeps."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.shards import batch_mean, num_shards


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32 whatever the type of its input.

    Args:
      width: size of the last axis.
      eps: added to the variance.
    """

    def __init__(self, width: int, *, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """`(x - mean) / sqrt(variance + eps) * scale + bias`, in float32."""
        return _normalise(x, self.scale[...], self.bias[...], self.eps)


@functools.partial(jax.checkpoint, static_argnums=3)
def _normalise(
    x: Float[Array, "*n d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*n d"]:
    """The layer norm.

    The variance is the mean of squared deviations, as in PyTorch: the one-pass form
    `E[x^2] - E[x]^2` loses digits where activations are large against their spread.

    The backward pass computes it again from `x`, so that its gradient is one summand of the
    residual stream. As several, XLA on a CPU fused the sums of all blocks above into each of
    their consumers: a training step of DeiT-B then took half as long again.
    """
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * scale + bias


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, in float32 whatever the type of its input.

    In training it normalises with the statistics of the batch and moves the running ones towards
    them: `running = (1 - momentum) * running + momentum * batch`, the variance that is kept
    being the unbiased one and that of the normalisation the biased one, as in
    `torch.nn.BatchNorm2d`. In evaluation it normalises with the running statistics.

    The mean over the batch is that of the whole batch, however it is divided over devices and
    processes (a synchronised batch norm in PyTorch's words).

    Args:
      width: size of the last axis.
      eps: added to the variance.
      momentum: share of the batch in the new running statistics.
    """

    def __init__(self, width: int, *, eps: float, momentum: float):
        self.eps = eps
        self.momentum = momentum
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(width, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(width, jnp.float32))
        # Of training batches so far. Nothing here reads it; files of PyTorch hold it.
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Float[Array, "*n d"], *, training: bool) -> Float[Array, "*n d"]:
        """`(x - mean) / sqrt(variance + eps) * scale + bias`, in the type of `x`.

        In training there must be more than one value per channel; of one the variance is not
        known, and the running one becomes NaN.
        """
        if not training:
            factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
            offset = self.bias[...] - self.mean[...] * factor
            return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)
        wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
        mean = batch_mean(wide.mean(axes))
        centred = wide - mean
        var = batch_mean(jnp.square(centred).mean(axes))
        y = centred * (jax.lax.rsqrt(var + self.eps) * self.scale[...]) + self.bias[...]
        y = y.astype(x.dtype)
        mean, var = jax.lax.stop_gradient((mean, var))
        values = x.size // x.shape[-1] * num_shards()
        keep, momentum = 1 - self.momentum, self.momentum
        self.mean[...] = keep * self.mean[...] + momentum * mean
        self.var[...] = keep * self.var[...] + momentum * var * (values / (values - 1))
        self.count[...] += 1
        return y
