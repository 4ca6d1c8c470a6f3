"""Time of the study's augmentation, 256 pixels to 224: ours on the device, torchvision's on PIL.

    python benchmarks/augment.py [BATCH ...]

Ours is one compiled program on JAX's default device. torchvision's is what the study ran in
its loader: one image after the other on one CPU core. Both in turn, with the median and the
range of the rounds. For scale: a training step of DeiT-B takes seconds on a CPU for 8 images.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

from fmi_jax.augment import augment
from fmi_jax.config import AugmentConfig

# torchvision has no operators beside a torch of another build; it imports once these exist.
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision.transforms as T  # noqa: E402

ROUNDS = 20
MEAN, STD = (0.41, 0.22, 0.07), (0.27, 0.15, 0.08)

torchvision_augment = T.Compose(
    [
        T.CenterCrop(224),
        T.RandomResizedCrop(224, scale=(0.8, 1.2)),
        T.RandomVerticalFlip(),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.2, 0.2, 0.1, 0.1)], p=0.8),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ]
)


def milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def main(batches: list[int]) -> None:
    config = AugmentConfig()
    ours = jax.jit(lambda keys, x: augment(keys, x, config, 224, MEAN, STD, jnp.float32))
    rng = np.random.default_rng(0)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; ms per batch (range)")
    print(f"{'batch':>5}  {'ours':>22}  {'torchvision, one core':>22}  ratio")
    for batch in batches:
        images = rng.integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
        on_device = jax.device_put(images)
        keys = jax.random.split(jax.random.key(0), batch)
        pil = [Image.fromarray(image) for image in images]

        def run_ours(keys=keys, images=on_device):
            ours(keys, images).block_until_ready()

        def run_torchvision(pil=pil):
            torch.stack([torchvision_augment(image) for image in pil])

        run_ours(), run_torchvision()
        times = [(milliseconds(run_ours), milliseconds(run_torchvision)) for _ in range(ROUNDS)]
        columns = list(zip(*times, strict=True))
        medians = [statistics.median(column) for column in columns]
        cells = [
            f"{median:.1f} ({min(column):.1f}-{max(column):.1f})"
            for median, column in zip(medians, columns, strict=True)
        ]
        print(f"{batch:5}  {cells[0]:>22}  {cells[1]:>22}  {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [8, 32])
