"""Sizes of a config's network: tokens, widths, parameters. Nothing is compiled for it."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.aot.program import Program
from fmi_jax.models.arch import StageByStage, StagedArch
from fmi_jax.models.base import ArchConfig, create_abstract
from fmi_jax.run.assembly import Assembly

_PREFIX = r"backbone\.(cls_token|dist_token|register_tokens)"
_ROW_PARALLEL = r"(.*\.)?(attn\.proj|mlp\.fc2|mlp\.w3)\.kernel"
_TILE = 128  # a head may be padded up to a multiple of it

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a program's network, and of its part on one chip.

    Attributes:
      tokens: number of tokens that attend to each other over the whole image, [cls] and registers
        included; in a network of stages, places of its first stage; 0 without attention.
      patches: number of tokens that are patches.
      score_widths: extents that scores of queries and keys may be summed over.
      pixels: sides of images, which resampling sums over.
      matrices: shapes of all kernels of linear layers, whole and as one chip holds them.
      learned, frozen: bytes of the parameters that learn and that do not, in the compute type;
        for parameters divided along "model", of one chip's part.
      backward: True if gradients go through the backbone.
      activations: bytes on one chip of the result of each product that sums over a dimension
        divided along "model": two in a transformer's block, [b, n, d] each.
      outputs: bytes that an evaluation step returns, whole on every chip.
    """

    tokens: int
    patches: int
    score_widths: frozenset[int]
    pixels: frozenset[int]
    matrices: frozenset[tuple[int, int]]
    learned: int
    frozen: int
    backward: bool
    activations: tuple[int, ...]
    outputs: int


def sizes(program: Program, assembly: Assembly, classes: int, mesh: Mesh) -> Sizes:
    """Compute the sizes of `program` on the chips of `mesh`.

    Args:
      program: program to compile.
      assembly: classifier of the program.
      classes: number of classes.
      mesh: mesh of the chips.
    """
    config, arch, partition = program.config, assembly.arch, assembly.partition
    item = jnp.dtype(assembly.execution.dtype).itemsize
    abstract = partition.shapes(tuple(partition.variables))
    shapes = {name: leaf.shape for name, leaf in abstract.items()}
    local = _local(mesh, abstract, "replicated")

    def total(names: tuple[str, ...]) -> int:
        return sum(math.prod(local[name]) for name in names) * item

    image, prepared = config.image_size, config.data.prepared_size
    backbone = create_abstract(assembly.spec.family, arch, assembly.execution)
    rows, cols = backbone.grid(image, image)
    heads = getattr(arch, "num_heads", None)
    on_tokens = assembly.transformer.arch if assembly.transformer else None
    prefix = sum(
        math.prod(shape[:-1]) for name, shape in shapes.items() if re.fullmatch(_PREFIX, name)
    )
    tokens = rows * cols + prefix
    images = config.train.batch_size // mesh.shape["data"]
    outputs = arch.feature_width + 2 if program.what == "features" else classes + 3
    held = (shapes, local, _local(mesh, abstract, config.train.sharding))
    return Sizes(
        tokens=tokens if heads else 0,
        patches=rows * cols if heads else 0,
        score_widths=_score_widths(arch, rows, cols) | _score_widths(on_tokens, 0, 0),
        pixels=frozenset((image, prepared, round(config.augment.center_crop * prepared))),
        matrices=frozenset(
            matrix for each in held for shape in each.values() for matrix in _as_matrices(shape)
        ),
        learned=total(partition.params),
        frozen=total(partition.frozen),
        backward=any(name.startswith("backbone.") for name in partition.params),
        activations=tuple(
            images * _tokens_at(arch, name, tokens) * shape[-1] * item
            for name, shape in shapes.items()
            if re.fullmatch(_ROW_PARALLEL, name) and shape != local[name]
        ),
        outputs=config.train.batch_size * outputs * 4,
    )


def _local(mesh: Mesh, abstract: Mapping[str, object], strategy: str) -> Shapes:
    placed = parallel.parameter_shardings(mesh, abstract, strategy)
    return {name: placed[name].shard_shape(leaf.shape) for name, leaf in abstract.items()}  # type: ignore[attr-defined]


def _as_matrices(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the matrix shapes in which products take a kernel; a fused one also part by part."""
    if len(shape) in (2, 3):
        yield shape[0], math.prod(shape[1:])
        yield shape[0], shape[-1]


def _score_widths(arch: ArchConfig | None, rows: int, cols: int) -> frozenset[int]:
    """Widths of a head, also padded to whole tiles; with relative positions folded in, all widths
    up to the sum of them. Empty without attention."""
    if not hasattr(arch, "num_heads"):
        return frozenset()
    width, heads = arch.width, arch.num_heads  # type: ignore[union-attr, attr-defined]
    head = width // (heads[0] if isinstance(arch, StagedArch) else heads)
    if hasattr(arch, "rel_pos_resize"):
        return frozenset(range(head, _whole_tiles(head + rows + cols) + 1))
    return frozenset((head, -(-head // 8) * 8, _whole_tiles(head)))


def _whole_tiles(width: int) -> int:
    return -(-width // _TILE) * _TILE


def _tokens_at(arch: ArchConfig, name: str, tokens: int) -> int:
    """Tokens of the block that a parameter belongs to; each stage has 1/4 of the one before."""
    stage = re.search(r"\bblocks\.(\d+)\.", name)
    return (
        tokens // 4 ** int(stage.group(1)) if isinstance(arch, StageByStage) and stage else tokens
    )
