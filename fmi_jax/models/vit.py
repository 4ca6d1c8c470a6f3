"""Parts shared by vision transformers of one width: shape, blocks, prefix tokens, positions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig, Backbone, Execution
from fmi_jax.nn.attention import Attention
from fmi_jax.nn.conv import PatchEmbed
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.resize import Kernel, resize_positions
from fmi_jax.nn.transformer import Block, linear_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerArch(ArchConfig):
    """The shape of a vision transformer of one width; a block is a transformer block.

    Attributes:
      patch_size: pixels per patch side.
      width: width of the tokens.
      depth: number of blocks.
      num_heads: heads of each attention; divides `width`.
      mlp_width: hidden width of the MLP.
      norm_eps: epsilon of every layer norm.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    norm_eps: float

    @property
    def num_blocks(self) -> int:
        """`depth`."""
        return self.depth

    @property
    def feature_width(self) -> int:
        """`width`."""
        return self.width

    @property
    def token_width(self) -> int:
        """`width`."""
        return self.width

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after `block`."""
        self.check_block(block)
        return dataclasses.replace(self, depth=block + 1)


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
        """Rows and columns of the whole patches of an image; `UsageError` if it has none.

        For families whose reference takes any size: the pixels beyond the last whole patch of a
        side are not seen (at 1024 pixels and patches of 14, the last 2).
        """
        if min(height, width) < self.patch_size:
            raise UsageError(
                f"image size {height}x{width}: expected at least one patch,"
                f" {self.patch_size}x{self.patch_size} pixels."
            )
        return height // self.patch_size, width // self.patch_size

    def sized(self, height: int, width: int) -> "OneGridArch":
        """The arch with positions for images of that size; `UsageError` as `patches` raises it."""
        return dataclasses.replace(self, grid=self.patches(height, width))


G = TypeVar("G", bound=OneGridArch)


class OneGrid(Backbone[G]):
    """A transformer with positions for one size of images, resized when weights are loaded.

    Families with a [cls] token set the attributes below; others define `embed` and `adapt`.
    """

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
        tokens = as_sequence(self.patch_embed(images), self.cls_token[...])
        return tokens + self.pos_embed[...].astype(tokens.dtype)

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Parameters with the position embedding resized to the grid of `target`."""
        assert isinstance(source, OneGridArch)
        assert isinstance(target, OneGridArch)
        table = resize_positions(
            jnp.asarray(params["pos_embed"]), source.grid, target.grid, cls.kernel
        )
        return {**params, "pos_embed": np.asarray(table)}
