"""Images that show their own masks, so that both can be compared after an augmentation."""

import jax
import jax.numpy as jnp
import numpy as np

from fmi_jax.augment import batch_augmentation
from fmi_jax.data.labels import Label
from fmi_jax.settings import AugmentConfig


def augmented(config: AugmentConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of a bright box; the images (0 to 1) and the masks that an augmentation makes of it."""
    side, count = 53, 6
    masks = np.zeros((count, side, side), np.uint8)
    masks[:, 12:31, 17:40] = 1
    batch = {"inputs": 255 * masks[..., None], "labels": masks}
    change = batch_augmentation(Label.MAP, config, side, (0.0,), (1.0,), jnp.float32)
    found = jax.jit(change)(jax.random.split(jax.random.key(3), count), batch)
    return masks, np.asarray(found["inputs"])[..., 0], np.asarray(found["labels"])
