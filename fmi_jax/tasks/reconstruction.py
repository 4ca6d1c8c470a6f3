"""Reconstruction: pixels of the patches that a network has not seen (MAE, arXiv 2111.06377).

No label is read, and nothing is measured afterwards: other protocols judge the backbone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fmi_jax.tasks.base import Objective

_LEAST_VARIANCE = 1e-6


class Reconstructed(NamedTuple):
    """Patches of images, and what is said of them.

    Attributes:
      predicted: predicted pixels of every patch, normalised as the loss normalises the true ones.
      pixels: true pixels of every patch.
      masked: True for patches that the encoder has not seen; as many of each image.
    """

    predicted: Float[Array, "b n p"]
    pixels: Float[Array, "b n p"]
    masked: Bool[Array, "b n"]


@dataclasses.dataclass(frozen=True)
class Reconstruction(Objective):
    """Squared error of the masked patches' pixels, each patch normalised by itself."""

    name = "reconstruction"

    def loss(
        self, outputs: Reconstructed, batch: Mapping[str, Any]
    ) -> tuple[Float[Array, "b"], dict[str, Array]]:
        """Compute the mean over all pixels of an image's masked patches.

        Seen of each image:
          loss_of_means: loss if each masked patch were said to have its mean everywhere; a network
            that has learned nothing ends there.
        """
        pixels, masked = outputs.pixels, outputs.masked
        variance = pixels.var(-1, keepdims=True, ddof=1)
        target = (pixels - pixels.mean(-1, keepdims=True)) / jnp.sqrt(variance + _LEAST_VARIANCE)

        def mean(errors: Float[Array, "b n p"]) -> Float[Array, "b"]:
            return jnp.square(errors).mean(-1).mean(1, where=masked)

        return mean(outputs.predicted - target), {"loss_of_means": mean(target)}
