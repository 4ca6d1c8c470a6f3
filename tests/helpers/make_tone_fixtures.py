"""Writes `tests/fixtures/tones.npz`: tone and random crop of albumentations 1.3.1.

    pip install albumentations==1.3.1 'numpy<2'; python tests/helpers/make_tone_fixtures.py

Images are float32 in 0..1, which albumentations does not round. What it draws is given to it and
kept beside the image that comes out.
"""

from pathlib import Path

import cv2
import numpy as np
from albumentations.augmentations import functional
from albumentations.augmentations.crops.functional import random_crop

SIDE = 23


def main() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((7, SIDE, SIDE, 3), np.float32)
    contrast, brightness, gamma = rng.uniform(-0.2, 0.2, (3, len(images)))
    drawn = list(zip(images, 1 + contrast, brightness, strict=True))
    sides = rng.integers(16, SIDE + 1, len(images))
    places = rng.random((len(images), 2))
    cut = [random_crop(*each) for each in zip(images, sides, sides, *places.T, strict=True)]
    np.savez_compressed(
        Path(__file__).parent.parent / "fixtures" / "tones.npz",
        images=images,
        factor=1 + contrast,
        summand=brightness,
        exponent=1 + gamma,
        brightness_contrast=[
            functional.brightness_contrast_adjust(image, alpha, beta, beta_by_max=True)
            for image, alpha, beta in drawn
        ],
        gamma=[
            functional.gamma_transform(image, power)
            for image, power in zip(images, 1 + gamma, strict=True)
        ],
        sides=sides,
        places=places,
        zoomed=[cv2.resize(each, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for each in cut],
    )


if __name__ == "__main__":
    main()
