"""Colour jitter (brightness, contrast, saturation, hue), tone, grayscale and solarization."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmi_jax.augment.uniform import between
from fmi_jax.errors import UsageError
from fmi_jax.settings import AugmentConfig

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's; they add up to 0.9999
_SOLARIZE_FROM = 128 / 255


def jitter_from_uniform(
    numbers: Float[Array, "b 9"], config: AugmentConfig, channels: int
) -> tuple[Float[Array, "b n"], Int[Array, "b n"]]:
    """Draw factors and order of torchvision's `ColorJitter`, for the operations of `jitter_ops`.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], for hue in
    [-strength, strength]; every order is equally likely. With probability
    1 - `jitter_probability` all factors are neutral and change nothing.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the jitter, then four factors and four
        places in the order, one for each operation; only those of active operations are used.
      config: augmentation config with the strengths.
      channels: number of channels of the images.
    """
    ops = jitter_ops(config, channels)
    active = jnp.array([list(_ADJUST).index(name) for name in ops], int)
    neutral = jnp.array([0.0 if name == "hue" else 1.0 for name in ops])
    strength = jnp.array([getattr(config, name) for name in ops])
    low = jnp.array([-config.hue if n == "hue" else max(0, 1 - getattr(config, n)) for n in ops])

    applied, factors, places = jnp.split(numbers, (1, 5), axis=1)
    factors = between(factors[:, active], low, neutral + strength)
    factors = jnp.where(applied < config.jitter_probability, factors, neutral)
    return factors, jnp.argsort(places[:, active], axis=1)


def jitter_ops(config: AugmentConfig, channels: int) -> tuple[str, ...]:
    """Names of the colour operations that `config` asks for on images with this many channels.

    On grey images saturation and hue do nothing, as in torchvision. Images with neither 1 nor 3
    channels have no colours to jitter and raise `UsageError`.
    """
    if config.jitter_probability == 0:
        return ()
    ops = tuple(name for name in _ADJUST if getattr(config, name))
    if ops:
        _check_channels("colour jitter", "jitter_probability", channels)
    return ops if channels == 3 else tuple(n for n in ops if n in ("brightness", "contrast"))


def adjust_brightness(
    images: Float[Array, "b h w c"], factors: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Multiply pixels by the factor, clipped to 0..1."""
    return _blend(images, factors, jnp.zeros(images.shape[:3]))


def adjust_contrast(
    images: Float[Array, "b h w c"], factors: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Move pixels away from (factor above 1) or towards the image's mean grey, clipped to 0..1."""
    return _blend(images, factors, jnp.mean(_grey(images), axis=(1, 2), keepdims=True))


def adjust_saturation(
    images: Float[Array, "b h w 3"], factors: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Move pixels away from (factor above 1) or towards their own grey, clipped to 0..1."""
    return _blend(images, factors, _grey(images))


def adjust_hue(
    images: Float[Array, "b h w 3"], shifts: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Turn the hue by `shifts` (1: the full circle); saturation and value of HSV stay."""
    red, green, blue = _planes(images)
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    sixths = jnp.where(
        high == red,
        (green - blue) / divisor,
        jnp.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * shifts[:, None, None]

    # Back from HSV: each channel follows the same trapezoid, a third of the circle apart.
    def channel(offset: int) -> Float[Array, "b h w"]:
        turn = sixths + offset
        turn = turn - 6 * jnp.floor(turn / 6)
        return high - chroma * jnp.clip(jnp.minimum(turn, 4 - turn), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


_ADJUST = {  # in torchvision's order
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def color_jitter(
    images: Float[Array, "b h w c"],
    factors: Float[Array, "b n"],
    order: Int[Array, "b n"],
    ops: tuple[str, ...] = tuple(_ADJUST),
) -> Float[Array, "b h w c"]:
    """Apply colour operations to `images` in 0..1, each image in its own order.

    Args:
      images: images with 3 channels, or 1 if `ops` has neither saturation nor hue.
      factors: strength of each of `ops`, in this order.
      order: permutation of the operations; `order[:, 0]` is the index in `ops` of the first one.
      ops: names of the operations ("brightness", "contrast", "saturation", "hue").
    """

    # At each step every image needs a different operation: all are computed, one is selected. It
    # is a loop because unrolled XLA on CPU recomputes each step for every use (seconds a batch).
    def step(i: int, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        op = order[:, i]
        factor = jnp.take_along_axis(factors, op[:, None], axis=1)[:, 0]
        result = images
        for index, name in enumerate(ops):
            chosen = (op == index)[:, None, None, None]
            result = jnp.where(chosen, _ADJUST[name](images, factor), result)
        return result

    return jax.lax.fori_loop(0, len(ops), step, images)


def tones_from_uniform(
    numbers: Float[Array, "b 4"], probability: float, strength: float
) -> Float[Array, "b 3"]:
    """Draw parameters of `change_tone`: brightness and contrast, or gamma.

    Args:
      numbers: uniform numbers in [0, 1): one decides on the change, one on its kind, two are the
        values.
      probability: probability of a change.
      strength: largest change of a parameter.
    """
    neutral = jnp.array([1.0, 0.0, 1.0])
    applied, kind, first, second = jnp.split(numbers, 4, axis=1)
    moves = between(jnp.concatenate([first, second, first], axis=1), -strength, strength)
    of_kind = jnp.where(kind < 0.5, jnp.array([1.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 1.0]))
    return neutral + moves * of_kind * (applied < probability)


def change_tone(
    images: Float[Array, "b h w c"], tones: Float[Array, "b 3"]
) -> Float[Array, "b h w c"]:
    """Change brightness and contrast, clipped to 0..1, and gamma, as albumentations 1.3 does.

    Args:
      images: images in 0..1.
      tones: factor, summand and exponent; (1, 0, 1) changes nothing.
    """
    factor, summand, exponent = tones.T[:, :, None, None, None]
    images = jnp.clip(factor * images + summand, 0, 1)
    return jnp.where(exponent == 1, images, images**exponent)


def grayscale(
    images: Float[Array, "b h w c"], chosen: Bool[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Turn the `chosen` images grey: luma in every channel. One-channel images do not change."""
    _check_channels("grayscale", "grayscale_probability", images.shape[-1])
    return jnp.where(chosen[:, None, None, None], _grey(images)[..., None], images)


def solarize(images: Float[Array, "b h w c"], chosen: Bool[Array, " b"]) -> Float[Array, "b h w c"]:
    """Invert values from 128 of 255 on, in the `chosen` images."""
    inverted = chosen[:, None, None, None] & (images >= _SOLARIZE_FROM)
    return jnp.where(inverted, 1 - images, images)


def _check_channels(operation: str, switch: str, channels: int) -> None:
    if channels not in (1, 3):
        raise UsageError(
            f"{operation} needs images of 1 or 3 channels, these have {channels}:"
            f" set augment.{switch}=0."
        )


def _planes(images: Float[Array, "b h w c"]) -> list[Float[Array, "b h w"]]:
    """Split into channels: XLA on CPU vectorises them much better than the last axis."""
    return [images[..., i] for i in range(images.shape[-1])]


def _grey(images: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """Compute the luma of colour images; grey images are returned unchanged."""
    planes = _planes(images)
    if len(planes) == 1:
        return planes[0]
    red, green, blue = (w * p for w, p in zip(_GREY_WEIGHTS, planes, strict=True))
    return red + green + blue


def _blend(
    images: Float[Array, "b h w c"], factors: Float[Array, " b"], other: Float[Array, "b #h #w"]
) -> Float[Array, "b h w c"]:
    """Compute `factor * image + (1 - factor) * other`, clipped to 0..1."""
    factors = factors[:, None, None]
    other = (1 - factors) * other
    return jnp.stack([jnp.clip(factors * p + other, 0, 1) for p in _planes(images)], axis=-1)
