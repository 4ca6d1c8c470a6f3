"""Soft labels that training draws anew."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.run.assembly import augmentation

LABELS = np.tile(np.array([0.0, 1.0, 0.7, np.nan, 0.6], np.float32), (601, 1))


def drawn(low: float, high: float, seed: int = 0) -> np.ndarray:
    """Labels of a training batch as its augmentation leaves them."""
    config = ExperimentConfig()
    config.loss.soft_labels = (low, high)
    config.augment.jitter_probability = 0.0
    config.image_size = 5
    assembly: Any = SimpleNamespace(
        fit=SimpleNamespace(augment=None), execution=SimpleNamespace(dtype=jnp.float32)
    )
    pixels: Any = SimpleNamespace(mean=(0.5,), std=(0.2,))
    batch = {"inputs": np.zeros((len(LABELS), 5, 5, 1), np.uint8), "labels": LABELS}
    change = jax.jit(augmentation(assembly, config, pixels, Label.VECTOR))
    return np.asarray(change(jax.random.split(jax.random.key(seed), len(LABELS)), batch)["labels"])


def test_labels_between_no_and_yes_are_drawn_for_each_image_class_and_step() -> None:
    np.testing.assert_array_equal(drawn(0.0, 0.0), LABELS)
    found, of_another_step = drawn(0.55, 0.85), drawn(0.55, 0.85, seed=1)
    known = [0, 1, 3]
    np.testing.assert_array_equal(found[:, known], LABELS[:, known])
    for column in (found[:, 2], found[:, 4], of_another_step[:, 2]):
        assert 0.55 <= column.min() < 0.56
        assert 0.84 < column.max() < 0.85
        assert abs(column.mean() - 0.7) < 4 * 0.3 / np.sqrt(12 * len(column))
    for a, b in ((found[:, 2], found[:, 4]), (found[:, 2], of_another_step[:, 2])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    np.testing.assert_array_equal(found, drawn(0.55, 0.85))
