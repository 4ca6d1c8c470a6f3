"""Low-rank adapters on a linear layer (LoRA, arXiv 2106.09685)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.linear import flat_product, pytorch_uniform
from fmi_jax.nn.shards import interleaved


class LoRALinear(nnx.Linear):
    """`x W + b + scale * x A B`, with an `A` and a `B` of their own for each part of the outputs.

    In place of an `nnx.Linear`, whose `kernel` and `bias` it takes over under their names, so that
    weights are loaded as ever. `B` is zero at first: the layer is then the one it replaces.

    Args:
      base: the layer; not to be used afterwards.
      starts: first output of each part that is adapted (of queries and values in a fused layer).
      width: outputs of a part.
      parts: number of equal parts of a fused layer (`shards.FUSED`); 1 for any other.
      rank: columns of the `A` and rows of the `B` of a part.
      scale: factor of the product; alpha / rank in the paper.
      rngs: stream `params`; `A` is drawn as in the paper's code, from a uniform distribution of
        variance `1 / (3 * inputs)`.
    """

    def __init__(
        self,
        base: nnx.Linear,
        starts: tuple[int, ...],
        width: int,
        *,
        parts: int = 1,
        rank: int,
        scale: float,
        rngs: nnx.Rngs,
    ):
        _take_over(base, self)
        self.starts, self.parts, self.scale = starts, parts, scale
        total = len(starts) * rank
        self.lora_a = nnx.Param(
            pytorch_uniform(rngs.params(), (self.in_features, total), jnp.float32)
        )
        self.lora_b = nnx.Param(jnp.zeros((total, width), jnp.float32))

    def __call__(self, inputs: Float[Array, "*n i"], out_sharding=None) -> Float[Array, "*n o"]:
        """The layer's output, in the layer's compute type."""
        y = super().__call__(inputs, out_sharding)
        a, b = self._factors()
        low = flat_product(inputs.astype(y.dtype), a.astype(y.dtype))
        return y + self.scale * flat_product(low, b.astype(y.dtype))

    def merged(self) -> nnx.Linear:
        """A plain layer with this one's outputs: its kernel is `W + scale * A B`."""
        a, b = self._factors()
        plain = nnx.eval_shape(lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
        _take_over(self, plain)
        plain.kernel = nnx.Param(self.kernel[...] + self.scale * (a @ b))
        return plain

    def _factors(self) -> tuple[Float[Array, "i r"], Float[Array, "r o"]]:
        """`A` of all parts side by side, and their `B` below one another, each in its columns."""
        by_part = jnp.split(self.lora_b[...], len(self.starts))
        rows = [
            jnp.pad(b, ((0, 0), (start, self.out_features - start - b.shape[1])))
            for start, b in zip(self.starts, by_part, strict=True)
        ]
        return self.lora_a[...], interleaved(jnp.concatenate(rows), self.parts)


_SHARED = (
    *("kernel", "bias", "in_features", "out_features", "use_bias", "dtype", "param_dtype"),
    *("precision", "dot_general", "promote_dtype", "preferred_element_type"),
)


def _take_over(source: nnx.Linear, target: nnx.Linear) -> None:
    """Make `target` the layer that `source` was: its parameters, and how it computes."""
    for name in _SHARED:
        setattr(target, name, getattr(source, name))
