"""MAE (arXiv 2111.06377): pre-training of a vision transformer by the patches that it has not seen.

A random quarter of an image's patches goes through the backbone, whose cost falls with it. A small
decoder, which is not handed on, sees these tokens and a mask token in the place of every other
patch, and says the pixels of each. The loss is the squared error on the patches that were masked,
each normalised by its own mean and deviation.

As in the paper and its code: masks, mask token, a decoder of transformer blocks with fixed sine and
cosine positions, the target, one random resized crop with a flip and nothing else. Not in the
paper:

* The positions of the backbone are its family's own, and learn. Its other prefix tokens (registers,
  the distillation token) go through the decoder beside [cls].
* The decoder's matrices are drawn as those of the backbones are, and Adam's second average is as
  long as everywhere here (0.999, not 0.95). The crop is bilinear.

The masks are drawn with the augmentation, from an image's own key: they do not depend on devices or
micro-batches, and a run that is resumed draws the same.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fmi_jax import augment
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig
from fmi_jax.models.registry import BACKBONES
from fmi_jax.models.vit import TransformerArch
from fmi_jax.nn.attention import Attention
from fmi_jax.nn.conv import cut_patches
from fmi_jax.nn.linear import linear, trunc_normal
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.transformer import Block
from fmi_jax.protocols import monitor, pretraining
from fmi_jax.protocols.spec import Fit, Images, Parts, Pixels
from fmi_jax.rules import Condition, low_high, positive, ruled
from fmi_jax.settings import AugmentConfig, BaseConfig, section
from fmi_jax.tasks.reconstruction import Reconstructed, Reconstruction
from fmi_jax.training.step import Arrays, Augment

_PANELS = {"Loss": "loss", "Loss of each patch's mean": "loss_of_means"}
_NOTHING = 0.99  # share of the loss of means from which on nothing has been learned
_PERIOD = 10_000  # base of the wavelengths of positions


@dataclasses.dataclass(slots=True)
class MaeConfig(monitor.MonitorConfig):
    """Self-supervised pre-training (protocol `mae`); `image_size` is the side of the view.

    Attributes:
      mask_ratio: share of the patches that the backbone does not see; what it sees is rounded down
        to whole patches.
      decoder_depth, decoder_width, decoder_heads: blocks of the decoder, width of its tokens, and
        heads of each attention; its MLPs are four times as wide.
      scale: range of the view's area, relative to the prepared image.
    """

    mask_ratio: float = ruled(
        0.75, Condition(lambda x: 0 < x < 1, "expected more than 0 and less than 1")
    )
    decoder_depth: int = positive(8)
    decoder_width: int = ruled(
        512, Condition(lambda x: x > 0 and x % 4 == 0, "expected a multiple of 4 above 0")
    )
    decoder_heads: int = positive(16, at_most=4096)
    scale: tuple[float, float] = low_high((0.2, 1.0), at_most=1)

    def contradictions(self) -> Iterator[str]:
        """Messages for fields that do not fit together."""
        width, heads = self.decoder_width, self.decoder_heads
        if width % heads:
            valid = [n for n in range(1, min(width, 2 * heads) + 1) if width % n == 0]
            near = min(valid, key=lambda n: abs(n - heads))
            yield (
                f"mae.decoder_heads={heads} does not divide mae.decoder_width={width}: nearest"
                f" valid is {near}"
            )


class PixelDecoder(nnx.Module):
    """Transformer that says the pixels of every patch from tokens of some.

    Args:
      arch: backbone whose tokens it reads.
      options: depth, width and heads.
      attention: kernel of its attention.
      dtype: compute type of matrix products.
      rngs: stream `params`.
    """

    def __init__(
        self, arch: TransformerArch, options: MaeConfig, *, attention: str, dtype: Any, rngs: Any
    ):
        width, make = options.decoder_width, {"dtype": dtype, "rngs": rngs}
        self.embed = linear(arch.width, width, **make)
        self.mask_token = nnx.Param(trunc_normal(rngs.params(), (1, 1, width), jnp.float32))
        self.layers = nnx.List(
            Block(
                width,
                mlp=Mlp(width, 4 * width, **make),
                attn=Attention(width, options.decoder_heads, kernel=attention, **make),
                eps=arch.norm_eps,
            )
            for _ in range(options.decoder_depth)
        )
        self.norm = LayerNorm(width, eps=arch.norm_eps)
        self.predict = linear(width, arch.patch_size**2 * arch.in_channels, **make)

    def __call__(
        self, tokens: Float[Array, "b m d"], kept: Int[Array, "b k"], grid: tuple[int, int]
    ) -> Float[Array, "b n p"]:
        """Compute the pixels of every patch, row by row, in float32.

        Args:
          tokens: prefix tokens, then those of the patches `kept`.
          kept: numbers of the patches that were seen.
          grid: rows and columns of all patches.
        """
        x = self.embed(tokens)
        prefix, seen = jnp.split(x, [x.shape[1] - kept.shape[1]], axis=1)
        shape = (len(x), math.prod(grid), x.shape[-1])
        unseen = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), shape)
        patches = _placed(seen, kept, unseen)
        patches += jnp.asarray(positions(*grid, shape[-1]), x.dtype)
        x = jnp.concatenate([prefix, patches], axis=1)
        for layer in self.layers:
            x = layer(x, None)
        return self.predict(self.norm(x[:, -shape[1] :])).astype(jnp.float32)


def positions(rows: int, cols: int, width: int) -> Float[np.ndarray, "n width"]:
    """Fixed positions of patches row by row: sines and cosines of the column, then of the row."""
    rates = _PERIOD ** -(np.arange(width // 4) / (width // 4))
    row, col = np.divmod(np.arange(rows * cols), cols)
    angles = (np.outer(place, rates) for place in (col, row))
    return np.concatenate([wave(a) for a in angles for wave in (np.sin, np.cos)], axis=1)


def _placed(values: Any, kept: Int[Array, "b k"], others: Array) -> Array:
    """`others [b, n, ...]`, with `values` in the places `kept` of each image."""
    return others.at[jnp.arange(len(kept))[:, None], kept].set(values, unique_indices=True)


class Mae(nnx.Module):
    """A backbone that sees some patches, and the decoder of all.

    Attributes:
      backbone: encoder.
      head: decoder.
      seen: number of patches that the backbone sees.
    """

    def __init__(self, parts: Parts, options: MaeConfig, seen: int):
        backbone, execution = parts.backbone, parts.backbone.execution
        self.backbone = backbone
        self.seen = seen
        self.head = PixelDecoder(
            backbone.arch,
            options,
            attention=execution.attention,
            dtype=execution.dtype,
            rngs=parts.rngs,
        )

    def __call__(
        self,
        inputs: tuple[Float[Array, "b h w c"], Int[Array, "b n"]],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Reconstructed:
        """Reconstruct images, of whose patches the first in a random order are seen."""
        images, order = inputs
        backbone: Any = self.backbone  # with [cls] first, and so with a norm at its end
        kept = order[:, : self.seen]
        *_, tokens = backbone.outputs(images, backbone.arch.num_blocks, rngs=rngs, kept=kept)
        pixels = cut_patches(images, backbone.arch.patch_size)
        b, rows, cols, _ = pixels.shape
        return Reconstructed(
            predicted=self.head(backbone.norm(tokens), kept, (rows, cols)),
            pixels=pixels.reshape(b, rows * cols, -1),
            masked=_placed(False, kept, jnp.ones((b, rows * cols), bool)),
        )


def masking(options: MaeConfig, patches: int, pixels: Pixels) -> Augment:
    """Make the view of each image, with a random order of its patches."""
    config = AugmentConfig(
        center_crop=1.0, crop_scale=options.scale, flip_vertical=0.0, jitter_probability=0.0
    )
    side = pixels.config.image_size

    def change(keys: jax.Array, batch: Arrays) -> Arrays:
        crop, mask = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        # In float32 whatever the compute type: the pixels are the target, too.
        images = augment.augment(
            crop, batch["inputs"], config, side, pixels.mean, pixels.std, jnp.float32
        )
        order = jax.vmap(lambda key: jax.random.permutation(key, patches))(mask)
        return batch | {"inputs": (images, order)}

    return change


def fit(config: BaseConfig, arch: ArchConfig) -> Fit:
    """Describe the pre-training of a backbone."""
    options, name = section(config, MaeConfig), config.backbone.name
    if not isinstance(arch, TransformerArch) or not BACKBONES[name].family.cls_first:
        raise UsageError(
            f"protocol 'mae': {name} computes on the full grid of patches and cannot leave any out;"
            " expected a plain vision transformer (DeiT, DINO, DINOv2, OpenCLIP, BLIP), such as"
            " deit_base, or protocol dino, byol or simsiam."
        )
    patches = (config.image_size // arch.patch_size) ** 2
    seen = int(patches * (1 - options.mask_ratio))
    if not seen:
        most = math.floor(1e4 * (1 - 1 / patches)) / 1e4
        less = f"at most {most}, or " if most else ""
        raise UsageError(
            f"mae.mask_ratio={options.mask_ratio} leaves none of the {patches} patches of {name} at"
            f" image_size={config.image_size}: expected {less}larger images."
        )
    of_all = pretraining.learns(config, arch)
    return Fit(
        module=lambda parts: Mae(parts, options, seen),
        # OpenCLIP's projection of [cls] is not computed: it has no gradient, and would only decay.
        learns=lambda name: name != "backbone.proj" and of_all(name),
        task=Reconstruction(),
        augment=lambda pixels: masking(options, patches, pixels),
        logged=lambda means: dict(means),
        keeps="last",
        monitor=functools.partial(monitor.watch, options, None),
    )


def _images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    return Images(pretraining.seen_images(config, counts), 0)


def _warn(config: BaseConfig, last: Mapping[str, float]) -> Iterator[str]:
    del config
    if last["loss"] > _NOTHING * last["loss_of_means"]:
        yield (
            f"The decoder's loss ({last['loss']:.3f}) is hardly below that of each patch's mean"
            f" ({last['loss_of_means']:.3f}): the pre-training has learned nothing of the patches"
            " that were masked."
        )


SPEC = pretraining.fit_spec(
    "mae",
    "MAE",
    fit=fit,
    options=MaeConfig,
    judge=pretraining.judge_of("mae", MaeConfig, _PANELS, _images, _warn),
    small={"mae.decoder_depth": 1, "mae.decoder_width": 32, "mae.decoder_heads": 2},
)
