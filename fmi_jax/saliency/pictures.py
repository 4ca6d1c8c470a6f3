"""Pictures of images under their maps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fmi_jax.artifacts.charts import Overlays
from fmi_jax.nn import resize
from fmi_jax.saliency import attention, gradient
from fmi_jax.saliency.maps import HALF, PIXELWISE, TITLES, maps_of


def pictures(
    mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any, Array], dict[str, Array]]:
    """Make the function that computes what is drawn, for `Network.step`.

    That is `maps_of`, the mask of the top half of the attention, and "images", uint8, as the
    network sees them.

    Args:
      mean, std: pixel statistics that the network's input is scaled with, in 0..1.
    """
    centre, scale = (np.asarray(x, np.float32) for x in (mean, std))

    def compute(module: Any, images: Array) -> dict[str, Array]:
        found = maps_of(module, images)
        if "attention" in found:
            found[HALF] = attention.top_mass(found["attention"], 0.5)
        pixels = jnp.round(255 * (images.astype(jnp.float32) * scale + centre)).clip(0, 255)
        return {**found, "images": pixels.astype(jnp.uint8)}

    return compute


def overlays(names: Sequence[str], drawn: Mapping[str, np.ndarray]) -> Overlays:
    """Make the chart of images under their maps.

    Args:
      names: words about each image.
      drawn: arrays of each image that `pictures` computes, and its "masks" if there are any.
    """
    height, width = drawn["images"].shape[1:3]
    maps = {}
    for name, title in TITLES.items():
        if name in drawn:
            kernel = resize.nearest if name == HALF else resize.linear
            found = gradient.enlarged(jnp.asarray(drawn[name]), height, width, kernel)
            if name == PIXELWISE:  # a few pixels would leave all others dark
                highest = jnp.quantile(found, 0.99, axis=(1, 2), keepdims=True)
                found = jnp.minimum(found, highest)
            maps[title] = np.asarray(gradient.scaled(found))
    return Overlays(names=names, images=drawn["images"], maps=maps, masks=drawn.get("masks"))
