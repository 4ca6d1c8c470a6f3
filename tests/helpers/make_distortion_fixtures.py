"""Writes `tests/fixtures/distortions.npz`: fields and images of albumentations 1.3.1.

    pip install albumentations==1.3.1 'numpy<2'; python tests/helpers/make_distortion_fixtures.py

What albumentations draws is given to it (noise, moves of points, steps, coefficient), and kept
beside the map that it hands to OpenCV and the image that comes out.
"""

from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from albumentations.augmentations.geometric import functional

SIDE, UNEVEN = 60, 63


def main() -> None:
    rng = np.random.default_rng(0)
    image, uneven = (rng.integers(0, 256, (n, n, 3), np.uint8) for n in (SIDE, UNEVEN))
    kept = {"image": image, "uneven": uneven}
    remap, maps = cv2.remap, []

    def recorded(img, map1, map2, **options):
        maps.append(np.stack([map1, map2], axis=-1))
        return remap(img, map1, map2, **options)

    with mock.patch.object(cv2, "remap", recorded):
        noise = rng.uniform(size=(2, SIDE, SIDE))
        random = functional.random_utils
        cases = {"elastic": rng.uniform(-3.6, 3.6, (3, 2)), "noise": np.zeros((3, 2))}
        for name, moves in cases.items():
            with (
                mock.patch.object(random, "uniform", return_value=moves),
                mock.patch.object(random, "rand", side_effect=[*noise]),
            ):
                kept[f"{name}_result"] = functional.elastic_transform(image, 120, 6, 3.6)
            kept |= {f"{name}_moves": moves, f"{name}_field": maps[-1]}
        kept["noise"] = 2 * np.moveaxis(noise, 0, -1) - 1
        for name, picture in (("grid", image), ("grid_uneven", uneven)):
            steps = rng.uniform(0.7, 1.3, (2, 6))
            kept[f"{name}_result"] = functional.grid_distortion(picture, 5, *steps)
            kept |= {f"{name}_steps": steps, f"{name}_field": maps[-1]}
        for name, bend in (("barrel", 1.7), ("cushion", -1.3)):
            kept[f"{name}_result"] = functional.optical_distortion(image, bend)
            kept |= {f"{name}_bend": bend, f"{name}_field": maps[-1]}
    np.savez_compressed(Path(__file__).parent.parent / "fixtures" / "distortions.npz", **kept)


if __name__ == "__main__":
    main()
