"""Parts shared by vision transformers of one width: blocks, prefix tokens, positions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.arch import TransformerArch
from fmi_jax.models.base import ArchConfig, Backbone, Execution, whole_patches
from fmi_jax.nn.attention import Attention
from fmi_jax.nn.drop_path import linear_rates
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.patch_embed import PatchEmbed
from fmi_jax.nn.resize import Kernel, resize_positions
from fmi_jax.nn.transformer import Block


def vit_blocks(
    arch: TransformerArch,
    execution: Execution,
    *,
    mlp: Callable[..., nnx.Module] = Mlp,
    layer_scale: float | None = None,
    rngs: nnx.Rngs,
) -> list[Block]:
    """The blocks of a transformer whose tokens attend to one another, MLPs drawn first.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      mlp: class of the feed-forward modules, or the same with some of its options.
      layer_scale: initial value of the branch factors; None for blocks without them.
      rngs: stream `params`.
    """
    width, made = arch.width, {"dtype": execution.dtype, "rngs": rngs}
    return [
        Block(
            width,
            mlp=mlp(width, arch.mlp_width, **made),
            attn=Attention(width, arch.num_heads, kernel=execution.attention, **made),
            eps=arch.norm_eps,
            layer_scale=layer_scale,
            drop_path=rate,
        )
        for rate in linear_rates(execution.drop_path, arch.depth)
    ]


def as_sequence(
    patches: Float[Array, "b *grid d"], *prefix: Float[Array, "... d"]
) -> Float[Array, "b n d"]:
    """Prefix tokens, the same for every image, then the patches row by row."""
    b, *_, width = patches.shape
    tokens = [token.astype(patches.dtype) for token in prefix]
    parts = [jnp.broadcast_to(token, (b, token.size // width, width)) for token in tokens]
    return jnp.concatenate([*parts, patches.reshape(b, -1, width)], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneGridArch(TransformerArch):
    """The shape of a transformer with positions for one size of images.

    Attributes:
      grid: rows and columns of patches that the position tables are for.
    """

    grid: tuple[int, int]

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image; `UsageError` if smaller than a patch."""
        return whole_patches(height, width, self.patch_size)

    def sized(self, height: int, width: int) -> "OneGridArch":
        """The arch with positions for images of that size; `UsageError` as `patches` raises it."""
        return dataclasses.replace(self, grid=self.patches(height, width))


class OneGrid(Backbone):
    """A transformer with positions for one size of images, resized when weights are loaded.

    Families with a [cls] token set the attributes below; others define `embed` and `adapt`.
    """

    arch: OneGridArch  # pyright: ignore[reportIncompatibleVariableOverride]
    cls_token: nnx.Param
    pos_embed: nnx.Param
    patch_embed: PatchEmbed
    kernel: ClassVar[Kernel]
    """How each axis of `pos_embed` is resampled."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid; `UsageError` unless it is that of the positions."""
        grid = self.arch.patches(height, width)
        if grid != self.arch.grid:
            rows, cols = (side * self.arch.patch_size for side in self.arch.grid)
            raise UsageError(
                f"image size {height}x{width}: this network has positions for {rows}x{cols};"
                f" build and load it with arch.sized({height}, {width})."
            )
        return grid

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b *n d"]:
        """Tokens that enter block 0: [cls], then the patches row by row."""
        self.grid(images.shape[1], images.shape[2])
        tokens = as_sequence(self.patch_embed(images), self.cls_token[...])
        return tokens + self.pos_embed[...].astype(tokens.dtype)

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Parameters with the position embedding resized to the grid of `target`."""
        assert isinstance(source, OneGridArch)
        assert isinstance(target, OneGridArch)
        table = jnp.asarray(params["pos_embed"])
        resized = resize_positions(table, source.grid, target.grid, cls.kernel)
        return {**params, "pos_embed": np.asarray(resized)}
