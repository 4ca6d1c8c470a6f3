"""Elastic, grid and optical distortion, as albumentations 1.3 has them.

Each is a field: the place in the image that a pixel of the result shows, x to the right and y down,
in pixels from the upper left corner (`augment.warp`). An image is looked up once, also under the
elastic distortion, which albumentations interpolates twice. What lies outside of the image is its
mirror image about the outermost pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fmi_jax.augment.uniform import between

KINDS = ("elastic", "grid", "optical")

# Those of the third study: ElasticTransform(alpha=120, sigma=6, alpha_affine=3.6),
# GridDistortion() and OpticalDistortion(distort_limit=2, shift_limit=0.5), whose shift is always
# rounded to 0.
ALPHA, SIGMA, CORNER = 120.0, 6.0, 3.6
"""Elastic: factor of the smoothed noise and its standard deviation, and largest move of three
points, all in pixels."""
STEPS, STRETCH = 5, 0.3
"""Grid: number of cells in each direction, and largest change of the width of one."""
BEND = 2.0
"""Optical: largest coefficient of the radial distortion."""

_TRUNCATE = 4  # standard deviations of a Gaussian, as in SciPy


def draw_field(
    keys: Key[Array, " b"], probability: float, kinds: tuple[str, ...], size: int
) -> Float[Array, "b size size 2"]:
    """Draw a field of one kind for each key; one that changes nothing means no distortion.

    Args:
      keys: random keys, one per image.
      probability: probability of a distortion.
      kinds: names of `KINDS`, all as likely.
      size: side of the images, in pixels.
    """

    def field(key: Key[Array, ""]) -> Float[Array, "size size 2"]:
        choice, noise_key = jax.random.split(key)
        numbers = jax.random.uniform(choice, (2 + 6 + 2 * (STEPS + 1) + 1,))
        which, moves, steps, bend = jnp.split(numbers[1:], [1, 7, 7 + 2 * (STEPS + 1)])
        one_of = {
            "elastic": lambda: elastic_field(
                between(jax.random.uniform(noise_key, (size, size, 2)), -1, 1),
                between(moves.reshape(3, 2), -CORNER, CORNER),
            ),
            "grid": lambda: grid_field(
                between(steps.reshape(2, -1), 1 - STRETCH, 1 + STRETCH), size
            ),
            "optical": lambda: optical_field(between(bend[0], -BEND, BEND), size),
        }
        fields = jnp.stack([one_of[kind]() for kind in kinds])
        found = fields[jnp.int32(which[0] * len(kinds))]
        return jnp.where(numbers[0] < probability, found, _places(size))

    return jax.vmap(field)(keys)


def elastic_field(
    noise: Float[Array, "size size 2"], moves: Float[Array, "3 2"]
) -> Float[Array, "size size 2"]:
    """Move every pixel by smoothed noise, after an affine map that moves three points.

    Args:
      noise: numbers in -1..1 for x and y.
      moves: moves of the points, in pixels.
    """
    size = len(noise)
    smooth = jnp.asarray(_smoothing(size), jnp.float32)
    moved = jnp.einsum("ih,hwc,jw->ijc", smooth, noise, smooth) * ALPHA
    centre, arm = size // 2, size // 3
    points = jnp.array(
        [[centre + arm, centre + arm], [centre + arm, centre - arm], [centre - arm, centre - arm]]
    )
    # The map that takes the moved points back, of pixels counted from the first one's centre.
    origin = points[0] + moves[0]
    there, back = (points + moves)[1:] - origin, (points[1:] - points[0]).astype(jnp.float32)
    (a, b), (c, d) = there
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    position = _places(size) - 0.5 + moved - origin
    return position @ (inverse @ back) + points[0] + 0.5


def grid_field(steps: Float[Array, "2 n"], size: int) -> Float[Array, "size size 2"]:
    """Stretch the columns and rows of a grid.

    Args:
      steps: widths of the columns and heights of the rows that are shown, relative to a cell; the
        last is what is left at the end of the image, and reaches to it.
      size: side of the image, in pixels.
    """
    cell = size // STEPS
    pixel = np.arange(size)
    at = pixel // cell
    inside = pixel % cell
    count = np.minimum(cell, size - at * cell)
    share = jnp.asarray(inside / np.maximum(count - 1, 1), jnp.float32)
    ends = jnp.cumsum(steps, axis=1) * cell
    starts = jnp.concatenate([jnp.zeros((2, 1)), ends[:, :-1]], axis=1)
    ends = ends.at[:, STEPS].set(size)
    x, y = starts[:, at] + share * (ends - starts)[:, at] + 0.5
    return jnp.stack(jnp.broadcast_arrays(x, y[:, None]), axis=-1)


def optical_field(bend: Float[Array, ""], size: int) -> Float[Array, "size size 2"]:
    """Bend lines as a lens does, outwards with a positive coefficient.

    As in OpenCV the image is moved by half a pixel, too: its centre shows the place half a pixel
    to the right of it and below.
    """
    ray = _places(size) / size - 0.5
    squared = jnp.square(ray).sum(axis=-1, keepdims=True)
    return size * (ray * (1 + bend * squared + bend * squared**2) + 0.5) + 0.5


def distort(
    images: Float[Array, "b h w c"], field: Float[Array, "b h w 2"]
) -> Float[Array, "b h w c"]:
    """Show the places of a field, interpolated bilinearly."""
    position = field - 0.5
    start = jnp.floor(position)
    right, down = jnp.moveaxis(position - start, -1, 0)[..., None]
    column, row = jnp.moveaxis(start.astype(jnp.int32), -1, 0)
    above = (1 - right) * _pixels(images, column, row) + right * _pixels(images, column + 1, row)
    below = (1 - right) * _pixels(images, column, row + 1) + right * _pixels(
        images, column + 1, row + 1
    )
    return (1 - down) * above + down * below


def distort_nearest(
    images: Float[Array, "b h w c"], field: Float[Array, "b h w 2"]
) -> Float[Array, "b h w c"]:
    """Same as `distort`, with the nearest pixel in place of interpolation."""
    column, row = jnp.moveaxis(jnp.round(field - 0.5).astype(jnp.int32), -1, 0)
    return _pixels(images, column, row)


def _places(size: int) -> Float[Array, "size size 2"]:
    """Centres of the pixels: the field that changes nothing."""
    x, y = jnp.meshgrid(jnp.arange(size) + 0.5, jnp.arange(size) + 0.5)
    return jnp.stack([x, y], axis=-1)


def _smoothing(size: int) -> Float[np.ndarray, "size size"]:
    """Weights of SciPy's `gaussian_filter`, whose images are mirrored about their edges."""
    reach = int(_TRUNCATE * SIGMA + 0.5)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / SIGMA) ** 2)
    place = (np.arange(size)[:, None] + steps) % (2 * size)
    place = np.minimum(place, 2 * size - 1 - place)
    found = np.zeros((size, size))
    np.add.at(found, (np.arange(size)[:, None], place), weights / weights.sum())
    return found


def _pixels(
    images: Float[Array, "b h w c"], column: Int[Array, "b i j"], row: Int[Array, "b i j"]
) -> Float[Array, "b i j c"]:
    """Look up pixels at whole numbers; outside is the mirror image about the outermost pixel."""
    batch, height, width, channels = images.shape
    index = _mirrored(row, height) * width + _mirrored(column, width)
    flat = images.reshape(batch, height * width, channels)
    taken = jnp.take_along_axis(flat, index.reshape(batch, -1, 1), axis=1)
    return taken.reshape(*index.shape, channels)


def _mirrored(index: Int[Array, "*n"], size: int) -> Int[Array, "*n"]:
    last = size - 1
    return last - jnp.abs(last - index % (2 * last)) if last else jnp.zeros_like(index)
