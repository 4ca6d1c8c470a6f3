"""Finds arrays with a number for every pair of tokens, n x n, which flash attention never holds.

A shape alone does not tell: at 224 pixels n is 197 to 264, and a batch of 256, a width of 384 and
a side of 224 pixels are as large. So scores are sought where they are made, in the products. A
product of queries with keys sums over the width of a head, and takes at least n of its rows from
one side and n of its columns from the other. A linear layer sums over another width, or has a
parameter's shape; windows and [cls] have fewer than n on a side; a batch and its tokens come from
the same side.
"""

from typing import NamedTuple

from fmi_jax.aot.hlo import Module, Shape
from fmi_jax.aot.products import Product, products
from fmi_jax.aot.sizes import Sizes

_FILL = 512  # tokens may be padded up to a multiple of it
_LARGE = 1024  # number of tokens from which a shape alone is enough to tell


class Slice(NamedTuple):
    """Scores of some queries with all keys, or of some keys with all queries.

    Attributes:
      some: number of those queries or keys.
      least, largest: numbers in the array of scores, without padding and with it.
    """

    some: int
    least: int
    largest: int


def pairs(module: Module, sizes: Sizes) -> list[str]:
    """Find shapes with two dimensions of at least the number of tokens, the largest first.

    Scores of all pairs count wherever they are, also inside a fusion. Scores of a few queries at a
    time count if a loop carries the array that holds all of them.
    """
    if not sizes.tokens:
        return []
    found: set[Shape] = set()
    slices: list[Slice] = []
    for product, _ in products(module):
        if not _scores(product, sizes):
            continue
        if min(product.left, product.right) >= sizes.patches:
            found.add(product.shape)
        elif max(product.left, product.right) >= sizes.patches:
            some, all_of_them = sorted((product.left, product.right))
            elements = product.shape.size
            slices.append(Slice(some, elements // all_of_them * sizes.patches, elements))
    for instruction, _, _ in module.running():
        for shape in instruction.shapes:
            carried = instruction.opcode == "while" and shape.dims not in sizes.matrices
            stacked = carried and any(_stacked(shape, part, sizes) for part in slices)
            if stacked or _square(shape, sizes):
                found.add(shape)
    return [str(shape) for shape in sorted(found, key=lambda s: (-s.bytes, s))]


def _scores(product: Product, sizes: Sizes) -> bool:
    left, right, summed = product.left, product.right, product.contracted
    if product.windowed or summed not in sizes.score_widths - sizes.pixels:
        return False
    # A linear layer in either pass has a parameter on one side.
    sides = ((summed, left), (left, summed), (summed, right), (right, summed))
    return not any(side in sizes.matrices for side in sides)


def _stacked(shape: Shape, part: Slice, sizes: Sizes) -> bool:
    """Test whether `shape` is enough slices for all pairs, stacked along a dimension."""
    return any(
        count * part.some >= sizes.patches and part.least <= shape.size // count <= part.largest
        for count in shape.dims
        if count > 1
    )


def _square(shape: Shape, sizes: Sizes) -> bool:
    """Test whether two dimensions are tokens, padded or not, and no other extent of the network."""
    if sizes.patches < _LARGE:
        return False
    extents = {extent for matrix in sizes.matrices for extent in matrix}
    top = -(-sizes.tokens // _FILL) * _FILL
    return sum(sizes.patches <= d <= top and d not in extents for d in shape.dims) >= 2
