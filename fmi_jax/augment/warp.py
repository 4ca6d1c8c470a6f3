"""Rotation, affine map and perspective, by looking up the source of each pixel of the result.

Positions are x to the right and y down, in pixels from the image's upper left corner, so that
the centre of the first pixel is at 0.5. Everything outside the image is black.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fmi_jax.augment.uniform import between
from fmi_jax.nn import hardware


def angles_from_uniform(
    numbers: Float[Array, "b 2"], probability: float, degrees: float
) -> Float[Array, " b"]:
    """Draw angles uniform in -degrees..degrees; 0 means no rotation.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the rotation, one on its angle.
      probability: probability of a rotation.
      degrees: largest angle, in degrees.
    """
    return jnp.where(numbers[:, 0] < probability, between(numbers[:, 1], -degrees, degrees), 0.0)


def rotate(images: Float[Array, "b h w c"], degrees: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Turn images counter-clockwise about their centre by `degrees`: torchvision's `rotate`.

    Interpolation is nearest, as in torchvision by default.
    """
    still = jnp.zeros_like(degrees)
    return affine(images, jnp.stack([-degrees, still, still, still + 1, still], axis=1))


def affine_from_uniform(
    numbers: Float[Array, "b 6"],
    probability: float,
    degrees: float,
    translate: tuple[float, float],
    scale: tuple[float, float],
    shear: float,
    height: int,
    width: int,
) -> Float[Array, "b 5"]:
    """Draw parameters of `affine`, as torchvision's `RandomAffine` does.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the map, then one for each parameter.
      probability: probability of a map that changes something.
      degrees: largest angle in either direction.
      translate: largest move in either direction, in widths to the right and in heights down;
        moves are rounded to whole pixels.
      scale: range of the factor.
      shear: largest angle of the shear along x, in degrees.
      height, width: size of the image, in pixels.
    """
    high = jnp.array([degrees, translate[0] * width, translate[1] * height, scale[1], shear])
    low = jnp.where(jnp.arange(5) == 3, scale[0], -high)
    drawn = between(numbers[:, 1:], low, high)
    drawn = drawn.at[:, 1:3].set(jnp.round(drawn[:, 1:3]))
    return jnp.where(numbers[:, :1] < probability, drawn, jnp.array([0.0, 0.0, 0.0, 1.0, 0.0]))


def affine(
    images: Float[Array, "b h w c"], parameters: Float[Array, "b 5"]
) -> Float[Array, "b h w c"]:
    """Shear images along x, scale, turn and move them about their centre: torchvision's `affine`.

    Interpolation is nearest, as in torchvision by default.

    Args:
      images: float images.
      parameters: clockwise angle in degrees; move to the right and down in pixels; scale; shear
        in degrees. (0, 0, 0, 1, 0) changes nothing.
    """
    _, height, width, _ = images.shape
    angle, right, down, scale, shear = parameters.T[:, :, None, None]
    cos, sin = jnp.cos(jnp.radians(angle)), jnp.sin(jnp.radians(angle))
    tan = jnp.tan(jnp.radians(shear))
    x, y = _pixel_centers(height, width)
    x, y = x - width / 2 - right, y - height / 2 - down
    # The inverse of rotation times scale times shear [[1, -tan], [0, 1]].
    turned_x, turned_y = (cos * x + sin * y) / scale, (cos * y - sin * x) / scale
    return _nearest(images, turned_x + tan * turned_y + width / 2, turned_y + height / 2)


def corners_from_uniform(
    numbers: Float[Array, "b 9"], probability: float, distortion: float, height: int, width: int
) -> Float[Array, "b 4 2"]:
    """Draw the corners for `perspective`, as torchvision's `RandomPerspective` does.

    Each corner moves inwards by whole pixels.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the perspective, then x and y of each
        corner.
      probability: probability of a perspective.
      distortion: largest move, relative to half a side.
      height, width: size of the image, in pixels.
    """
    largest = jnp.array([int(distortion * (width // 2)), int(distortion * (height // 2))])
    inwards = jnp.floor(numbers[:, 1:].reshape(-1, 4, 2) * (largest + 1))
    inwards = jnp.where(numbers[:, :1, None] < probability, inwards, 0.0)
    x, y = width - 1.0, height - 1.0
    corners = jnp.array([[0.0, 0.0], [x, 0.0], [x, y], [0.0, y]])
    return jnp.where(corners == 0, inwards, corners - inwards)


def perspective(
    images: Float[Array, "b h w c"], corners: Float[Array, "b 4 2"]
) -> Float[Array, "b h w c"]:
    """Warp images to a perspective, bilinear: torchvision's `perspective` without fill.

    (`RandomPerspective` fills with 0, which weighs the outermost pixels down twice.)

    Args:
      images: float images.
      corners: new x and y of the upper left, upper right, lower right and lower left pixel,
        relative to the upper left one.
    """
    return _bilinear(images, *_seen_from(corners, *images.shape[1:3]))


def perspective_nearest(
    images: Float[Array, "b h w c"], corners: Float[Array, "b 4 2"]
) -> Float[Array, "b h w c"]:
    """Same as `perspective`, with the nearest pixel in place of interpolation."""
    x, y = _seen_from(corners, *images.shape[1:3])
    return _pixels(images, jnp.round(x - 0.5), jnp.round(y - 0.5))


def _seen_from(
    corners: Float[Array, "b 4 2"], height: int, width: int
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Find the source x and y of each pixel of a perspective."""
    last_x, last_y = width - 1, height - 1
    # The projective map of the unit square to the corners (Heckbert, Fundamentals of Texture
    # Mapping and Image Warping, 1989, section 2.2.3), with the upper left corner as origin.
    origin_x, origin_y = corners[:, 0].T[:, :, None, None]
    moved = (corners[:, 1:] - corners[:, :1]).reshape(-1, 6)
    x1, y1, x2, y2, x3, y3 = moved.T[:, :, None, None]
    x12, y12, x32, y32 = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    sum_x, sum_y = x2 - x1 - x3, y2 - y1 - y3
    area = x12 * y32 - x32 * y12
    g = (sum_x * y32 - x32 * sum_y) / area
    h = (x12 * sum_y - sum_x * y12) / area
    a, b, d, e = x1 + g * x1, x3 + h * x3, y1 + g * y1, y3 + h * y3
    # Its inverse, in pixels: exactly the identity where no corner moves.
    x, y = _pixel_centers(height, width)
    x, y = x - origin_x, y - origin_y
    depth = (d * h - e * g) * x + (b * g - a * h) * y + (a * e - b * d)
    depth = depth / (last_x * last_y)
    return (e / last_y * x - b / last_y * y) / depth, (a / last_x * y - d / last_x * x) / depth


def _pixel_centers(height: int, width: int) -> tuple[Float[Array, " w"], Float[Array, "h 1"]]:
    """x and y of all pixel centres."""
    return jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5


def _nearest(
    images: Float[Array, "b h w c"], x: Float[Array, "b i j"], y: Float[Array, "b i j"]
) -> Float[Array, "b i j c"]:
    """Look up the pixels nearest to positions (x, y), which come from an affine map."""
    column, row = jnp.round(x - 0.5), jnp.round(y - 0.5)
    if hardware.platform() != "tpu":
        return _pixels(images, column, row)
    steep = jnp.ptp(y[:, 0], axis=1) > jnp.ptp(x[:, 0], axis=1)
    return _pixels_on_lines(images, column, row, steep)


def _bilinear(
    images: Float[Array, "b h w c"], x: Float[Array, "b i j"], y: Float[Array, "b i j"]
) -> Float[Array, "b i j c"]:
    """Interpolate between the four pixels around positions (x, y)."""
    height, width = images.shape[1:3]
    # Positions far outside or at infinity are black, like those just outside.
    x = jnp.where(jnp.abs(x - width / 2) < width, x - 0.5, -2.0)
    y = jnp.where(jnp.abs(y - height / 2) < height, y - 0.5, -2.0)
    left, top = jnp.floor(x), jnp.floor(y)
    right, down = (x - left)[..., None], (y - top)[..., None]
    above = (1 - right) * _pixels(images, left, top) + right * _pixels(images, left + 1, top)
    below = (1 - right) * _pixels(images, left, top + 1) + right * _pixels(
        images, left + 1, top + 1
    )
    return (1 - down) * above + down * below


def _pixels(
    images: Float[Array, "b h w c"], column: Float[Array, "b i j"], row: Float[Array, "b i j"]
) -> Float[Array, "b i j c"]:
    """Look up pixels at whole numbers `column` and `row`; black outside the image."""
    batch, height, width, channels = images.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
    flat = images.reshape(batch, height * width, channels)
    taken = jnp.take_along_axis(flat, index.reshape(batch, -1, 1), axis=1)
    return jnp.where(inside[..., None], taken.reshape(*index.shape, channels), 0.0)


def _pixels_on_lines(
    images: Float[Array, "b h w c"],
    column: Float[Array, "b i j"],
    row: Float[Array, "b i j"],
    steep: Bool[Array, " b"],
) -> Float[Array, "b i j c"]:
    """Same as `_pixels`, to the bit, for positions from an affine map, without a gather.

    A TPU fetches the pixels of a gather one by one, each with a whole tile of memory. Here they are
    selected by products with matrices of zeros and ones. The map takes each row `i` of the result
    to a line. A line flatter than a diagonal meets each column of the image in one or two rows. So
    first both pixels are taken from every column, then the wanted ones from the columns. Rows and
    columns change places if the line is steep.

    Args:
      images: float images.
      column, row: positions, whole numbers.
      steep: True if rows of the result run more downwards than to the right.
    """
    height, width = images.shape[1:3]
    side = max(height, width)
    square = ((0, 0), (0, side - height), (0, side - width), (0, 0))
    source = jnp.pad(images, square)  # padding is black, like everything outside the image
    source = jnp.where(steep[:, None, None, None], source.swapaxes(1, 2), source)
    along = jnp.where(steep[:, None, None], row, column)
    across = jnp.where(steep[:, None, None], column, row)
    places = jnp.arange(side, dtype=column.dtype)

    across = jnp.clip(across, -1, side)
    there = along[..., None] == places  # [b, i, j, place along]
    changes = jnp.pad(
        along[..., 1:] != along[..., :-1], ((0, 0), (0, 0), (1, 1)), constant_values=True
    )
    begins, ends = (there & where[..., None] for where in (changes[..., :-1], changes[..., 1:]))
    first, last = (
        _product("bijp,bijk->bpik", x, across[..., None])[..., 0] for x in (begins, ends)
    )

    def taken(across: Float[Array, "b p i"], wanted: Bool[Array, "b i j p"]) -> Array:
        columns = _product("bpiq,bqpk->bipk", across[..., None] == places, source)
        return _product("bijp,bipk->bijk", wanted, columns)

    is_first = across[..., None] == first.swapaxes(1, 2)[:, :, None]
    return taken(first, there & is_first) + taken(last, there & ~is_first)


def _product(sums: str, chosen: Bool[Array, "..."], values: Float[Array, "*n k"]) -> Array:
    """Multiply by `chosen`, where at most one term of every sum is not zero. The result is exact
    although TPU matrix units take bfloat16: three of them make up one float32."""
    parts = []
    for _ in range(3):
        # Same as a conversion to bfloat16, which XLA may leave out.
        part = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        values = values - part
    parts = jnp.concatenate(parts, axis=-1)
    product = jnp.einsum(sums, chosen.astype(jnp.bfloat16), parts).astype(jnp.float32)
    high, middle, low = jnp.split(product, 3, axis=-1)
    return (high + middle) + low
