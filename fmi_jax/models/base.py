"""Base of every backbone: an arch describes it, blocks compute it, features leave it."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fmi_jax.errors import UsageError
from fmi_jax.nn.flash import pad_tokens
from fmi_jax.nn.recompute import recomputed
from fmi_jax.nn.shards import gathered
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchConfig(abc.ABC):
    """The shape of a network: everything that decides its parameters and its function.

    Families add their own fields, every one required: a default is where two ports of one
    network drift apart in silence.

    Attributes:
      in_channels: channels of the input images.
    """

    in_channels: int

    @property
    @abc.abstractmethod
    def num_blocks(self) -> int:
        """Number of blocks, in the sense of freezing, truncation and CKA."""

    @property
    @abc.abstractmethod
    def feature_width(self) -> int:
        """Width `f` of `Features.pooled` after the last block."""

    @property
    def token_width(self) -> int:
        """Width `d` of `Features.tokens` after the last block; a family's own if it is another."""
        return self.feature_width

    @property
    def fine_width(self) -> int | None:
        """Channels of the stem's map at half the image's size; None: the stem has no such map."""
        return None

    @abc.abstractmethod
    def truncated(self, block: int) -> "ArchConfig":
        """The arch that keeps blocks 0..`block` and has no later one."""

    def sized(self, height: int, width: int) -> "ArchConfig":
        """The arch for images of that size in pixels.

        This same one where the network takes any size. Families that resize position tables
        when weights are loaded (`Backbone.adapt`) return one with tables for that size, and
        raise `UsageError` for a size they cannot take.
        """
        return self

    def with_study_stem(self) -> "ArchConfig | None":
        """The arch with the stem that the study's code rebuilds for `in_channels`.

        None where that code only cuts the kernel, which `backbone.stem="first"` does.
        """
        return None

    def check_block(self, block: int) -> None:
        """Raise `UsageError` unless `block` is an index of a block."""
        if not 0 <= block < self.num_blocks:
            raise UsageError(
                f"block {block} does not exist:"
                f" this backbone has blocks 0 to {self.num_blocks - 1}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Settings that a network runs with; beyond rounding they do not change its function.

    Attributes:
      dtype: compute type of matrix products and activations; parameters, norms and softmax
        stay float32.
      attention: "auto", flash attention where the hardware has it, or "plain".
      remat: recompute each block in the backward pass instead of keeping its activations.
      drop_path: stochastic-depth rate of the last block, rising linearly from 0 at the first;
        acts only when `rngs` is given.
    """

    dtype: Any = jnp.float32
    attention: str = "auto"
    remat: bool = False
    drop_path: float = 0.0


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A small network of a family, for tests that run over every family.

    Attributes:
      name: key of the network, unique among those of all families.
      arch: sizes that are not multiples of one another, so that mixed-up axes show.
      image_size: side in pixels of the square images it takes, not the one it was trained at.
    """

    name: str
    arch: ArchConfig
    image_size: int


A = TypeVar("A", bound=ArchConfig)


class Backbone(nnx.Module, Generic[A]):
    """A feature extractor made of blocks.

    A family names the class of its `arch`, sets `blocks` (an `nnx.List` of modules called as
    `block(x, rngs)`, but see `cls_first`), defines `embed` and `readout`, and names `tiny`
    networks. In every method `rngs=None` means evaluation: no drop-path, running BatchNorm
    statistics. With `rngs` (stream `dropout`) the network is in training mode.
    """

    tiny: ClassVar[tuple[Tiny, ...]] = ()
    """A small network of the family, and one for each other variant of its structure."""

    cls_first: ClassVar[bool] = False
    """Whether blocks work on a sequence of tokens whose first is [cls]. A block is then called as
    `block(x, rngs, tokens, length)`: only the first `length` tokens of `x` are attended to, and
    the output is that of a slice of the tokens. `readout` takes a pair (`cls_and_rest`)."""

    own_maps: ClassVar[tuple[str, ...]] = ()
    """Names of the maps of where it looks that need no classifier (`fmi_jax.saliency.maps`)."""

    blocks: nnx.List

    def __init__(self, arch: A, execution: Execution):
        self.arch, self.execution = arch, execution

    @abc.abstractmethod
    def embed(self, images: Float[Array, "b h w c"]) -> Array:
        """Compute the input of block 0, for images of a size that `grid` takes."""

    def enter(
        self, images: Float[Array, "b h w c"], rngs: nnx.Rngs | None
    ) -> tuple[Array | None, Array]:
        """Compute the map of `arch.fine_width` channels and the input of block 0, in training mode
        with `rngs`; the same but where the stem has a batch norm."""
        return None, self.embed(images)

    @abc.abstractmethod
    def readout(self, x: Any, block: int, grid: tuple[int, int]) -> Features:
        """The features of a network that ends after `block`, whose output is `x`.

        Args:
          x: output of block `block`.
          block: index of the block; `arch.num_blocks - 1` for the whole network.
          grid: rows and columns of the patch grid at the input of block 0.
        """

    def tokens_of(
        self, x: Array, block: int, grid: tuple[int, int]
    ) -> Float[Array, "b rows cols d"]:
        """Tokens of the output `x` of `block` as they are, before a norm that ends the network.

        Args:
          x, block, grid: see `readout`; `x` is one array.
        """
        if not self.cls_first:
            return x
        rows, cols = grid
        return x[:, -rows * cols :].reshape(len(x), rows, cols, -1)

    @abc.abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid for an image; `UsageError` if it has none."""

    def features_at(
        self,
        images: Float[Array, "b h w c"],
        blocks: Sequence[int],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Features, ...]:
        """Features after each of `blocks`, in the order asked, from one forward pass.

        Equal to the features of the network truncated after each block. Blocks beyond the
        highest one asked for are not computed.
        """
        return self.pyramid(images, blocks, rngs=rngs)[1]

    def pyramid(
        self,
        images: Float[Array, "b h w c"],
        blocks: Sequence[int],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Array | None, tuple[Features, ...]]:
        """Compute `features_at`, and the map of `arch.fine_width` channels in the same pass."""
        for block in blocks:
            self.arch.check_block(block)
        if images.shape[-1] != self.arch.in_channels:
            raise UsageError(
                f"images have {images.shape[-1]} channels (shape {images.shape}):"
                f" this backbone was built for {self.arch.in_channels}, as [b, h, w, c]."
            )
        grid = self.grid(images.shape[1], images.shape[2])
        fine, x = self.enter(images, rngs)
        outputs = self._outputs(x, max(blocks) + 1, rngs, cls_apart=True)
        wanted = {i: self.readout(x, i, grid) for i, x in enumerate(outputs, -1) if i in blocks}
        return fine, tuple(wanted[i] for i in blocks)

    def outputs(
        self,
        images: Float[Array, "b h w c"],
        count: int,
        *,
        rngs: nnx.Rngs | None = None,
        kept: Int[Array, "b k"] | None = None,
    ) -> Iterator[Any]:
        """Compute the input of block 0, and then the output of each of the first `count` blocks.

        Where blocks work on padded tokens, nobody else sees the padding.

        Args:
          images: the network's input.
          count: number of blocks.
          rngs: see the class.
          kept: patches of each image that blocks see, by their numbers row by row, in this order
            after the prefix tokens; only for networks with [cls] first. None: all.
        """
        _, x = self.enter(images, rngs)
        if kept is not None:
            prefix = x.shape[1] - math.prod(self.grid(images.shape[1], images.shape[2]))
            chosen = jnp.take_along_axis(x[:, prefix:], kept[..., None], axis=1)
            x = jnp.concatenate([x[:, :prefix], chosen], axis=1)
        return self._outputs(x, count, rngs, cls_apart=False)

    def _outputs(
        self, x: Array, count: int, rngs: nnx.Rngs | None, *, cls_apart: bool
    ) -> Iterator[Any]:
        """`outputs` from the input of block 0; with `cls_apart` the last one of a network with
        [cls] first is a pair, as `cls_and_rest` takes it."""
        yield x
        if not self.cls_first:
            for block in self.blocks[:count]:
                x = self.run_block(block, x, rngs)
                yield x
            return
        length = x.shape[1]
        x = pad_tokens(x)
        for i, block in enumerate(self.blocks[:count]):
            apart = cls_apart and i == count - 1
            call = functools.partial(_cls_apart if apart else _sequence, length=length)
            x = self._run(call, block, x, rngs)
            yield x if apart else x[:, :length]

    def features(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Features:
        """Features after the last block."""
        return self.features_at(images, (self.arch.num_blocks - 1,), rngs=rngs)[0]

    def run_block(self, block: nnx.Module, x: Array, rngs: nnx.Rngs | None) -> Array:
        """One block of a network without [cls], rematerialised when `execution.remat` says so.

        Each block draws from a stream of its own, so that a block computed twice drops the
        same paths, and rematerialisation changes no random number.
        """
        return self._run(lambda block, x, key: block(x, _dropout(key)), block, x, rngs)

    def _run(
        self,
        call: Callable[[Any, Array, Array | None], Any],
        block: nnx.Module,
        x: Array,
        rngs: nnx.Rngs | None,
    ) -> Any:
        key = None if rngs is None else rngs.dropout()
        # A block that has anything but parameters and running statistics is refused by the
        # split, where an update of it would be lost in silence.
        graphdef, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)

        def run(x: Array, key: Array | None, params: Any, stats: Any) -> tuple[Any, Any]:
            # Gathered inside: what is computed again in the backward pass is gathered again.
            block = nnx.merge(graphdef, *gathered((params, stats), self.execution.dtype))
            return call(block, x, key), nnx.state(block, nnx.BatchStat)

        if self.execution.remat:
            run = recomputed(run)
        y, stats = run(x, key, params, stats)
        if key is not None:
            nnx.update(block, stats)
        return y

    @classmethod
    def adapt(
        cls, params: Mapping[str, np.ndarray], source: ArchConfig, target: ArchConfig
    ) -> dict[str, np.ndarray]:
        """Parameters of `source` made to fit `target`, where the reference does so at loading.

        The base drops nothing and changes nothing; families resize position tables here.
        Truncation and input channels are handled by the loader for all families alike.
        """
        return dict(params)


def cls_and_rest(
    x: Float[Array, "b n d"] | tuple[Float[Array, "b 1 d"], Float[Array, "b m d"]],
) -> tuple[Float[Array, "b d"], Float[Array, "b m d"]]:
    """[cls] and the other tokens of a block's output, in one array or computed apart."""
    cls, rest = (x[:, :1], x[:, 1:]) if isinstance(x, jax.Array) else x
    return cls[:, 0], rest


def _sequence(block: Any, x: Array, key: Array | None, *, length: int) -> Array:
    return block(x, _dropout(key), slice(None), length)


def _cls_apart(block: Any, x: Array, key: Array | None, *, length: int) -> tuple[Array, Array]:
    """Run a block for [cls] and for the other tokens apart, and do not join their outputs.

    Where only [cls] is read, only keys and values are computed for the others, in both passes:
    three quarters of the block are saved, 6 % of a ViT-B.
    """
    cls, rest = (block(x, _dropout(key), part, length) for part in (slice(0, 1), slice(1, length)))
    return cls, rest


def _dropout(key: Array | None) -> nnx.Rngs | None:
    return None if key is None else nnx.Rngs(dropout=key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """A public checkpoint of a backbone.

    Attributes:
      tag: short name of the weights ("lvd142m"); with the backbone's name it is unique.
      url: address of the original file.
      sha256: checksum of that file, or its leading hex digits where only those are published
        (torch hub file names); None where the publisher gives none.
      layout: name of the key layout in `weights_convert`.
      licence: SPDX identifier, or the publisher's own name for it.
    """

    tag: str
    url: str
    sha256: str | None
    layout: str
    licence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A named backbone: a family, an arch and the public weights that fit it.

    Attributes:
      name: the study's name for it; looked up, never parsed.
      family: the class that computes it, called as `family(arch, execution, rngs=...)`.
      arch: shape of the network, with three input channels.
      num_params: golden parameter count of that shape, without any classification head.
      patch_size: pixels per token side, or the total stride of a hierarchical network.
      image_size: the side in pixels of the square images it was trained on.
      sources: public checkpoints, the one of the study first; empty for a network of our own.
      note: one line a reader of the model table wants to know.
    """

    name: str
    family: type[Backbone]
    arch: ArchConfig
    num_params: int
    patch_size: int
    image_size: int
    sources: tuple[WeightsSource, ...]
    note: str = ""


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of that size in pixels.

    A side that is not a multiple of `patch_size` raises `UsageError` with the nearest ones
    that are: a strided convolution would drop the last pixels in silence.
    """
    wrong = [side for side in dict.fromkeys((height, width)) if side % patch_size or side <= 0]
    if wrong:
        nearest = {side: max(round(side / patch_size), 1) * patch_size for side in wrong}
        raise UsageError(
            f"image size {height}x{width}: expected multiples of the patch size {patch_size}; "
            + ", ".join(f"nearest to {side} is {near}" for side, near in nearest.items())
            + "."
        )
    return height // patch_size, width // patch_size


class ParameterKeys(nnx.Rngs):
    """Keys for the parameters of a network, one after another: those of `nnx.Rngs(key)`.

    Their number is a plain one, also while a network is traced. That of `nnx.Rngs` is traced with
    it, at a cost that grows with the square of the number of parameters.

    Args:
      key: key that all are made from.
      drawn: number of keys that have been taken.
    """

    def __init__(self, key: Array, drawn: int = 0):
        self.key, self.drawn = key, drawn

    def params(self) -> Array:
        """Take the next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)


def create(family: type[Backbone], arch: ArchConfig, execution: Execution, seed: int) -> Backbone:
    """A backbone with random parameters drawn from `seed`."""
    return family(arch, execution, rngs=ParameterKeys(jax.random.key(seed)))  # type: ignore[call-arg]


def create_abstract(family: type[Backbone], arch: ArchConfig, execution: Execution) -> Backbone:
    """Make a backbone with shapes in place of parameters: no memory, no compute."""
    return nnx.clone(_traced(family, arch, execution))


@functools.lru_cache
def _traced(family: type[Backbone], arch: ArchConfig, execution: Execution) -> Backbone:
    """Trace the making of a backbone, which takes longer than copying what came of it."""
    return nnx.eval_shape(lambda: create(family, arch, execution, 0))


def parameters(module: nnx.Module) -> dict[str, Any]:
    """Every parameter and running statistic of `module` by its native name.

    Names join the attribute path with dots ("blocks.0.attn.qkv.kernel"). Values are arrays,
    or `jax.ShapeDtypeStruct` for an abstract module.
    """
    state = nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }
