"""Where networks look: attention of a DINO, Grad-CAM of a ResNet."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fmi_jax.nn.resize import nearest, resize
from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.saliency import attention, gradient
from parity_families import deit, resnet


def _attention(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    height, width = images.shape[1:3]
    inputs = attention.block_inputs(module, images)
    of_cls = attention.cls_attention(module, images)
    b, n, _ = inputs[0].shape
    everything = jnp.broadcast_to(jnp.eye(n), (b, n, n))
    half = attention.top_mass(of_cls, 0.5)
    rows, cols = of_cls.shape[-2:]
    kernels = nearest(rows, height), nearest(cols, width)
    return {
        "tokens_in": inputs[0],
        "attention": attention.weights(module.blocks[-1], inputs[-1], slice(None)),
        "cls_attention": of_cls.reshape(*of_cls.shape[:2], -1),
        "cls_attention_map": of_cls,
        "mask_50": half,
        "mask_60": attention.top_mass(of_cls, 0.6),
        "mask_50_image": resize(half[..., None], *kernels)[..., 0],
        "mean_map": of_cls.mean(axis=1),
        "rollout": attention.rolled_out(module, inputs, everything),
        "rollout_map": attention.rollout(module, images),
    }


def _grad_cam(module: Any, images: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    kernel, bias = given["fc.weight"].T, given["fc.bias"]
    classifier = LinearClassifier(module, len(bias), eval_mode=True, rngs=nnx.Rngs(0))
    classifier.head.kernel[...], classifier.head.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    layer = gradient.last_layer(classifier, given["target"], images)
    raw = gradient.grad_cam(layer)
    cam = gradient.scaled(raw)
    first = {name: jnp.moveaxis(value, -1, 1) for name, value in layer._asdict().items()}
    return first | {
        "final_logits": classifier(images),
        "cam_raw": raw,
        "cam": cam,
        "cam_image": gradient.scaled(gradient.enlarged(cam, *images.shape[1:3])),
    }


ATTENTION = dataclasses.replace(deit.FAMILY, arrays=_attention)
GRAD_CAM = dataclasses.replace(resnet.FAMILY, arrays=_grad_cam)
