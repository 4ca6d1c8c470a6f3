"""Maps of gradients: what of an image speaks for a class."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fmi_jax.nn import resize
from fmi_jax.nn.stage import Stage
from fmi_jax.saliency.attention import read_by_head, whole


class Given(nnx.Module):
    """A layer whose output is given; the input does not matter."""

    def __init__(self, output: Float[Array, "b *n d"]):
        self.output = nnx.Param(output)

    def __call__(self, x: Float[Array, "b *m d"], *_: Any) -> Float[Array, "b *m d"]:
        """The output; of a sequence that is padded, with as much padding."""
        output = self.output[...]
        if output.ndim > 3:
            return output
        return jnp.pad(output, ((0, 0), (0, x.shape[1] - output.shape[1]), (0, 0)))


class AtLayer(NamedTuple):
    """A layer of a classifier, and what it does to one logit of each image.

    Attributes:
      activations: output of the layer, a grid.
      gradients: gradient of the logit with respect to it.
    """

    activations: Float[Array, "b rows cols d"]
    gradients: Float[Array, "b rows cols d"]


def last_layer(module: Any, target: Int[Array, "b"], images: Float[Array, "b h w c"]) -> AtLayer:
    """Differentiate a logit at the layer that Grad-CAM reads.

    It is the output of the last stage. The output of a vision transformer's last block says
    nothing where [cls] alone is read: there it is what the attention of the last block reads, its
    first norm's output, at the patches.

    Args:
      module: classifier, called as `module(images, rngs=None)`.
      target: class of each image, whose logit is differentiated.
      images: the classifier's input.
    """
    backbone, entering = read_by_head(module, images)
    rows, cols = backbone.grid(entering.shape[1], entering.shape[2])
    *_, before, last = backbone.outputs(entering, len(backbone.blocks))
    value = last
    if backbone.cls_first:
        value = whole(backbone, backbone.blocks[-1]).norm1(before)
    graphdef, state = nnx.split(module)

    def logit(value: Array) -> Array:
        copy = nnx.merge(graphdef, state)
        blocks = read_by_head(copy, images)[0].blocks
        if backbone.cls_first:
            blocks[-1].norm1 = Given(value)
        else:
            _innermost(blocks)[-1] = Given(value)
        return of_target(copy(images, rngs=None), target)

    gradient = jax.grad(logit)(value)
    if not backbone.cls_first:
        return AtLayer(value, gradient)
    shape = (len(images), rows, cols, value.shape[-1])
    return AtLayer(*(part[:, -rows * cols :].reshape(shape) for part in (value, gradient)))


def _innermost(blocks: nnx.List) -> nnx.List:
    """Find the list that ends with the last layer of all: of stages, that of the last stage."""
    last = blocks[-1]
    if isinstance(last, nnx.List):
        return last
    return last.blocks if isinstance(last, Stage) else blocks


def of_target(logits: Float[Array, "b k"], target: Int[Array, "b"]) -> Float[Array, ""]:
    """Sum the logit of each image's target; no image's depends on another."""
    return jnp.take_along_axis(logits, target[:, None], axis=1).sum()


def grad_cam(layer: AtLayer) -> Float[Array, "b rows cols"]:
    """Channels weighted by their mean gradient, where the sum is positive (arXiv 1610.02391)."""
    activations, gradients = (part.astype(jnp.float32) for part in layer)
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((weights * activations).sum(axis=-1))


def gradient_times_input(
    module: Any, target: Int[Array, "b"], images: Float[Array, "b h w c"]
) -> Float[Array, "b h w"]:
    """Absolute sum over channels of the input times the gradient of the target's logit."""
    graphdef, state = nnx.split(module)

    def logit(images: Array) -> Array:
        return of_target(nnx.merge(graphdef, state)(images, rngs=None), target)

    product = jax.grad(logit)(images).astype(jnp.float32) * images.astype(jnp.float32)
    return jnp.abs(product.sum(axis=-1))


def scaled(found: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Maps from 0 to 1, as grad-cam's package scales them; one that is 0 everywhere stays so."""
    found = found - found.min(axis=(1, 2), keepdims=True)
    return found / (1e-7 + found.max(axis=(1, 2), keepdims=True))


def enlarged(
    found: Float[Array, "b rows cols"],
    height: int,
    width: int,
    kernel: Callable[[int, int], np.ndarray] = resize.linear,
) -> Float[Array, "b h w"]:
    """Maps at the size of the image, bilinear or by another kernel of `nn.resize`."""
    rows, cols = found.shape[1:]
    return resize.resize(found[..., None], kernel(rows, height), kernel(cols, width))[..., 0]
