"""Write `fixtures/augment.npz`: torchvision's results for the operations of `fmi_jax.augment`.

    python tests/helpers/make_augment_fixtures.py

Expected values come from torchvision's functional operations on float64 tensors, which are
exact to 1e-15, and from the same on 8-bit PIL images, which is what the study ran.
"""

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import torch

# torchvision has no operators beside a torch of another build; it imports once these exist.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision.transforms.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.transforms import (  # noqa: E402
    RandomAffine,
    RandomErasing,
    RandomPerspective,
    RandomResizedCrop,
)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "augment.npz"
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
MEAN, STD = (0.41, 0.22, 0.07), (0.27, 0.15, 0.08)


def draw_images(rng: np.random.Generator, batch: int, height: int, width: int) -> np.ndarray:
    """Smooth coloured images with noise, black and white parts, uint8 `[b, h, w, 3]`."""
    small = torch.from_numpy(rng.uniform(-0.3, 1.3, (batch, 3, 5, 4)))
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 0.05, smooth.shape)
    return np.round(255 * noisy.clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64) / 255)


def to_array(image: torch.Tensor | Image.Image) -> np.ndarray:
    """`[h, w, c]`: float32 of a tensor, uint8 of a PIL image."""
    if isinstance(image, Image.Image):
        return np.asarray(image).reshape(image.height, image.width, -1)
    return image.numpy().transpose(1, 2, 0).astype(np.float32)


def crop_flip(image, box, flips, size):
    image = F.resized_crop(image, *box, [size, size], F.InterpolationMode.BILINEAR, antialias=True)
    image = F.vflip(image) if flips[0] else image
    return F.hflip(image) if flips[1] else image


def jitter(image, factors, order):
    for op in order:
        image = ADJUST[op](image, float(factors[op]))
    return image


def affine(image, angle, right, down, scale, shear):
    return F.affine(image, angle, [right, down], scale, [shear, 0.0])


def is_decided(parameters, height: int, width: int) -> bool:
    """Whether no pixel of an affine map lies so near the middle of two that rounding decides."""
    angle, right, down, scale, shear = parameters
    inverse = F._get_inverse_affine_matrix([0, 0], angle, [right, down], scale, [shear, 0.0])
    y, x = np.mgrid[:height, :width] + 0.5 - np.array([height, width]).reshape(2, 1, 1) / 2
    rows = np.array(inverse).reshape(2, 3) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    positions = rows + np.array([[width / 2], [height / 2]])
    return np.abs(positions - np.round(positions)).min() > 5e-5


def draw_affine(rng: np.random.Generator, height: int, width: int, shear: float) -> list[float]:
    while True:
        angle, shear_x = rng.uniform(-90, 90), rng.uniform(-shear, shear)
        right, down = rng.integers(-7, 8, 2)
        scale = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        parameters = np.float32([angle, right, down, scale, shear_x]).astype(float).tolist()
        if is_decided(parameters, height, width):
            return parameters


def draw_corners(height: int, width: int, distortion: float) -> list[list[int]]:
    return RandomPerspective.get_params(width, height, distortion)[1]


def perspective(image, corners):
    height, width = image.shape[1:]
    x, y = width - 1, height - 1
    return F.perspective(image, [[0, 0], [x, 0], [x, y], [0, y]], corners)


def erase_box(image):
    """Box of torchvision's `RandomErasing`; the whole image stands for none."""
    return RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4]


def main() -> None:
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}

    # Crops: enlarged, reduced (where antialias matters), both at once, one pixel, whole image.
    images = draw_images(rng, 7, 41, 37)
    boxes = np.array(
        [[3, 5, 17, 13], [0, 0, 41, 37], [2, 1, 37, 11], [11, 3, 7, 31], [40, 36, 1, 1],
         [1, 2, 29, 29], [0, 6, 41, 31]], dtype=np.int32
    )  # fmt: skip
    flips = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 1], [1, 0]], dtype=bool)
    out |= {"crop_images": images, "crop_boxes": boxes, "crop_flips": flips}
    for size in (29, 13):
        for kind, convert in (("tensor", to_tensor), ("pil", Image.fromarray)):
            out[f"crop_{kind}_{size}"] = np.stack(
                [
                    to_array(crop_flip(convert(image), box, flip, size))
                    for image, box, flip in zip(images, boxes.tolist(), flips, strict=True)
                ]
            )

    # Boxes of the random resized crop with the study's scale, 8 bits each: top, left, h, w.
    torch.manual_seed(0)
    image, scale, ratio = torch.empty(3, 224, 224), [0.8, 1.2], [3 / 4, 4 / 3]
    drawn = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(10_000)]
    out["random_boxes"] = np.array(drawn, np.uint8)

    # Centre crops of 0.7: offsets of 5.5 and 6.5 pixels, both rounded to even.
    for height, width, sizes in ((41, 37, [29, 26]), (43, 40, [30, 28])):
        image = draw_images(rng, 1, height, width)[0]
        out[f"center_{height}_{width}_image"] = image
        out[f"center_{height}_{width}"] = to_array(F.center_crop(Image.fromarray(image), sizes))

    # Each colour operation on every hue, on greys, black and white, and weak to strong.
    corners = np.array(list(itertools.product((0, 77, 255), repeat=3)), np.uint8)
    images = draw_images(rng, 5, 11, 7)
    images[:, :9, :3] = corners.reshape(9, 3, 3)
    factors = np.array(
        [[0, 0.4, 1, 1.2, 2.7], [0, 0.4, 1, 1.2, 2.7], [0, 0.4, 1, 1.1, 2.7],
         [-0.5, -0.1, 0, 0.03, 0.5]], dtype=np.float32
    )  # fmt: skip
    out |= {"color_images": images, "color_factors": factors.T}
    for adjust, row in zip(ADJUST, factors, strict=True):
        out[f"color_{adjust.__name__}"] = np.stack(
            [
                to_array(adjust(to_tensor(image), float(f)))
                for image, f in zip(images, row, strict=True)
            ]
        )
    grey = images[..., :1]
    out["color_grey_contrast"] = np.stack(
        [
            to_array(F.adjust_contrast(to_tensor(image), float(f)))
            for image, f in zip(grey, factors[1], strict=True)
        ]
    )

    # All 24 orders, with factors strong enough that clipping makes the order matter.
    images = draw_images(rng, 24, 7, 5)
    order = np.array(list(itertools.permutations(range(4))), np.int32)
    low, high = np.array([0.4, 0.4, 0.4, -0.4]), np.array([1.8, 1.8, 1.8, 0.4])
    factors = rng.uniform(low, high, (24, 4)).astype(np.float32)
    out |= {"jitter_images": images, "jitter_order": order, "jitter_factors": factors}
    out["jitter"] = np.stack(
        [
            to_array(jitter(to_tensor(image), f, o))
            for image, f, o in zip(images, factors, order, strict=True)
        ]
    )

    # The whole of training and evaluation, with the study's strengths, as tensors and as PIL.
    batch, side, size = 6, 24, 21
    images = draw_images(rng, batch, side, side)
    boxes = np.array(
        [[0, 0, 21, 21], [1, 3, 20, 18], [0, 2, 21, 17], [3, 0, 18, 21], [2, 2, 18, 19],
         [0, 0, 20, 20]], dtype=np.int32
    )  # fmt: skip
    flips = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [1, 0], [0, 1]], dtype=bool)
    factors = rng.uniform([0.8, 0.8, 0.9, -0.1], [1.2, 1.2, 1.1, 0.1], (batch, 4))
    factors = factors.astype(np.float32)
    factors[0] = (1, 1, 1, 0)  # what stands for no jitter at all
    order = np.stack([rng.permutation(4) for _ in range(batch)]).astype(np.int32)
    out |= {"train_images": images, "train_boxes": boxes, "train_flips": flips}
    out |= {"train_factors": factors, "train_order": order}
    out |= {"mean": np.array(MEAN, np.float32), "std": np.array(STD, np.float32)}
    for kind, convert in (("tensor", to_tensor), ("pil", Image.fromarray)):
        train, evaluation = [], []
        for i, image in enumerate(images):
            x = F.center_crop(convert(image), [size])
            y = crop_flip(x, boxes[i].tolist(), flips[i], size)
            y = jitter(y, factors[i], order[i]) if i > 0 else y
            if kind == "pil":
                x, y = F.to_tensor(x).double(), F.to_tensor(y).double()
            train.append(to_array(F.normalize(y, MEAN, STD)))
            evaluation.append(to_array(F.normalize(x, MEAN, STD)))
        out[f"train_{kind}"] = np.stack(train)
        out[f"eval_{kind}"] = np.stack(evaluation)

    # What moves pixels; the first of each moves none.
    height, width = 29, 23
    images = draw_images(rng, 7, height, width)
    out["warp_images"] = images
    angles = [0.0, 5.0, -5.0, 31.0, -77.0, 123.0, -171.0]
    assert all(is_decided((-angle, 0, 0, 1, 0), height, width) for angle in angles[1:])
    maps = [[0, 0, 0, 1, 0]] + [draw_affine(rng, height, width, 40) for _ in range(6)]
    quads = [draw_corners(height, width, d) for d in (0, 0.1, 0.2, 0.3, 0.5, 0.5, 0.5)]
    sigmas = [0.01, 0.1, 0.37, 0.8, 1.3, 1.7, 2.0]
    cases = {
        "rotate": (F.rotate, angles),
        "affine": (lambda image, parameters: affine(image, *parameters), maps),
        "perspective": (perspective, quads),
        "blur": (lambda image, sigma: F.gaussian_blur(image, [31, 31], [sigma, sigma]), sigmas),
    }
    for name, (function, arguments) in cases.items():
        out[f"{name}_parameters"] = np.array(arguments, np.float32)
        out[name] = np.stack(
            [
                to_array(function(to_tensor(image), argument))
                for image, argument in zip(images, out[f"{name}_parameters"].tolist(), strict=True)
            ]
        )
    images = out["color_images"]
    grey = [to_array(F.rgb_to_grayscale(to_tensor(image), 3)) for image in images]
    solarized = [to_array(F.solarize(to_tensor(image), 128 / 255)) for image in images]
    out |= {"grayscale": np.stack(grey), "solarize": np.stack(solarized)}

    # Everything in the study's order, on the images above. The first has none of the new.
    still, *maps = [0, 0, 0, 1, 0], *(draw_affine(rng, size, size, 20) for _ in range(4))
    every = {
        "angles": [0, 5, -3, 0, 2, -4],
        "grey": [False, True, False, False, True, False],
        "sigmas": [0, 0.4, 0, 1.1, 2.0, 0],
        "affine": [still, maps[0], still, *maps[1:]],
        "corners": [draw_corners(size, size, d) for d in (0, 0, 0.3, 0.3, 0.3, 0.3)],
        "solarized": [False, False, True, True, False, True],
        "erased": [[0, 0, 0, 0], [3, 5, 7, 11], [0, 0, 0, 0], [14, 0, 7, 5], [0, 1, 1, 20],
                   [2, 2, 11, 3]],
    }  # fmt: skip
    assert all(is_decided((-angle, 0, 0, 1, 0), size, size) for angle in every["angles"] if angle)
    result = []
    for i, image in enumerate(draw_images(rng, batch, side, side)):
        out.setdefault("every_images", np.zeros((batch, side, side, 3), np.uint8))[i] = image
        x = F.center_crop(to_tensor(image), [size])
        x = crop_flip(x, boxes[i].tolist(), flips[i], size)
        x = F.rotate(x, every["angles"][i])
        x = jitter(x, factors[i], order[i])
        x = F.rgb_to_grayscale(x, 3) if every["grey"][i] else x
        sigma = every["sigmas"][i]
        x = F.gaussian_blur(x, [31, 31], [sigma, sigma]) if sigma else x
        x = affine(x, *every["affine"][i])
        x = perspective(x, every["corners"][i])
        if every["solarized"][i]:
            assert (x - 128 / 255).abs().min() > 1e-5, "rounding decides what is inverted"
            x = F.solarize(x, 128 / 255)
        x = F.normalize(x, MEAN, STD)
        result.append(to_array(F.erase(x, *every["erased"][i], torch.zeros(1, dtype=x.dtype))))
    out |= {f"every_{name}": np.array(values) for name, values in every.items()}
    out["every"] = np.stack(result)

    # Random choices with the study's ranges.
    image = torch.empty(3, 224, 224)
    draw = functools.partial(RandomAffine.get_params, (-5, 5), (0.1, 0.3), (0.1, 3.3), (-0.2, 0.2))
    drawn = [draw([224, 224]) for _ in range(2000)]
    out["random_affine"] = np.array([(a, *t, s, sh[0]) for a, t, s, sh in drawn], np.float32)
    drawn = [draw_corners(224, 224, 0.2) for _ in range(2000)]
    out["random_corners"] = np.array(drawn, np.uint8)
    out["random_erased"] = np.array([erase_box(image) for _ in range(5000)], np.uint8)

    FIXTURES.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURES, **out)
    print(f"{FIXTURES.name}: {FIXTURES.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
