"""Views of an image in an evaluation: ten crops, windows over the whole, mirror images.

The outputs over several views are logits whose probabilities are the mean over the views. Each
function takes the network as `images of one view -> logits`, its classes on the last axis.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fmi_jax.augment.crop import center_crop, crop_size
from fmi_jax.data.labels import Label
from fmi_jax.errors import UsageError
from fmi_jax.settings import BaseConfig, ViewsConfig

Network = Callable[[UInt8[Array, "b h w c"]], Float[Array, "b ..."]]

_TEN = 10
_SPREAD = 0.125  # of the Gaussian weights, in windows
_LEAST = 1e-3  # of these weights, so that the rim of an image has some
_FLIPS = ((), (1,), (2,), (1, 2))


def check_views(config: BaseConfig, label: Label, size: int) -> None:
    """Raise `UsageError` if the views of `config` do not suit such labels on images of `size`."""
    name, maps = config.views.name, label.of_pixels
    if name == "ten_crop" and maps:
        raise UsageError(
            "views.name='ten_crop' averages what is said of an image, and these labels are masks:"
            " expected 'windows' or 'center'."
        )
    if name == "ten_crop" and config.augment.center_crop == 1:
        raise UsageError(
            "views.name='ten_crop' with augment.center_crop=1.0: all crops would be the whole"
            " image; expected less, such as 0.875, or 'center'."
        )
    if name == "windows" and not maps:
        raise UsageError(
            f"views.name='windows' is for masks, and these labels are {label.words}: expected"
            " 'ten_crop' or 'center'."
        )
    if name == "windows":
        _check_size(size, config.image_size)


def count_views(config: BaseConfig, name: str) -> int:
    """Count the views of this name that a network sees of one image."""
    if name == "windows":
        starts = window_starts(config.data.prepared_size, config.image_size, config.views.overlap)
        return len(starts) ** 2
    return _TEN if name == "ten_crop" else 1


def over_ten_crops(
    network: Network, images: UInt8[Array, "b h w c"], fraction: float, exclusive: bool
) -> Float[Array, "b ..."]:
    """Compute logits over the corners and the centre of an image and their mirror images.

    Args:
      network: network of one crop.
      images: prepared images.
      fraction: side of a crop, relative to the image.
      exclusive: see `likelihoods`.
    """
    _, height, width, _ = images.shape
    h, w = crop_size(height, width, fraction)
    corners = [
        images[:, top : top + h, left : left + w]
        for top in (0, height - h)
        for left in (0, width - w)
    ]
    five = jnp.stack([*corners, center_crop(images, fraction)])
    ten = jnp.concatenate([five, jnp.flip(five, axis=3)])
    # One crop after the other: memory is that of one.
    each = jax.lax.map(lambda crop: likelihoods(network(crop), exclusive), ten)
    return logits_of(each.sum(axis=0), exclusive)


def over_windows(
    network: Network,
    images: UInt8[Array, "b h w c"],
    size: int,
    views: ViewsConfig,
    exclusive: bool,
) -> Float[Array, "b h w k"]:
    """Compute logits of every pixel over windows at the image's own scale.

    Args:
      network: network of one window, which gives logits for each of its pixels.
      images: prepared images.
      size: side of a window.
      views: overlap and weights of the windows.
      exclusive: see `likelihoods`.

    Raises:
      UsageError: the images are smaller than a window.
    """
    batch, height, width, channels = images.shape
    _check_size(min(height, width), size)
    places = [
        (top, left)
        for top in window_starts(height, size, views.overlap)
        for left in window_starts(width, size, views.overlap)
    ]
    weights = jnp.asarray(window_weights(size, views.weights))[..., None]

    def of_window(top: Array, left: Array) -> Float[Array, "b s s ..."]:
        window = jax.lax.dynamic_slice(images, (0, top, left, 0), (batch, size, size, channels))
        each = likelihoods(network(window), exclusive)
        return each * (weights if each.ndim == images.ndim else weights[..., None])

    def add(total: Array, place: Array) -> tuple[Array, None]:
        top, left = place
        new = of_window(top, left)
        at = (0, top, left, *[0] * (new.ndim - 3))
        old = jax.lax.dynamic_slice(total, at, new.shape)
        return jax.lax.dynamic_update_slice(total, old + new, at), None

    shape = jax.eval_shape(of_window, *places[0]).shape
    none = jnp.zeros((batch, height, width, *shape[3:]), jnp.float32)
    # One window after the other: memory does not grow with their number.
    total, _ = jax.lax.scan(add, none, jnp.array(places, jnp.int32))
    # Not divided by the sum of the weights: what all classes share changes no probability.
    return logits_of(total, exclusive)


def over_flips(
    network: Network, images: UInt8[Array, "b h w c"], exclusive: bool
) -> Float[Array, "b h w k"]:
    """Compute logits of every pixel over an image and its three mirror images."""
    said = [
        jnp.flip(likelihoods(network(jnp.flip(images, axes)), exclusive), axes) for axes in _FLIPS
    ]
    return logits_of(sum(said[1:], said[0]), exclusive)


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """List where windows begin along an axis; the last one ends where the axis does."""
    step = max(1, int(size * (1 - overlap)))
    return [*range(0, length - size, step), length - size]


def window_weights(size: int, name: str) -> Float[np.ndarray, "{size} {size}"]:
    """Weigh the pixels of a window: all the same ("flat"), or more towards its centre."""
    if name == "flat":
        return np.ones((size, size), np.float32)
    distance = np.arange(size) - (size - 1) / 2
    bell = np.exp(-(distance**2) / (2 * (_SPREAD * size) ** 2))
    weights = np.outer(bell, bell)
    return np.maximum(weights, max(weights.min(), _LEAST)).astype(np.float32)


def likelihoods(logits: Float[Array, "..."], exclusive: bool) -> Float[Array, "..."]:
    """Compute what `logits_of` takes sums of: probabilities of the classes on the last axis.

    Args:
      logits: logits, of which anything is a mean over views.
      exclusive: True for one class, by a softmax; False for any number, by a sigmoid each, whose
        classes have a last axis more: presence and absence, both to full precision.
    """
    logits = logits.astype(jnp.float32)
    if exclusive:
        return jax.nn.softmax(logits)
    return jax.nn.sigmoid(jnp.stack([logits, -logits], axis=-1))


def logits_of(sums: Float[Array, "..."], exclusive: bool) -> Float[Array, "..."]:
    """Invert `likelihoods`, up to what all classes share: finite, whatever is summed."""
    logs = jnp.log(jnp.maximum(sums, jnp.finfo(jnp.float32).tiny))
    return logs if exclusive else logs[..., 0] - logs[..., 1]


def _check_size(found: int, size: int) -> None:
    if found < size:
        raise UsageError(
            f"views.name='windows' with image_size={size} on images prepared at {found}: expected"
            f" image_size of {found} or less, or images prepared at {size} or more."
        )
