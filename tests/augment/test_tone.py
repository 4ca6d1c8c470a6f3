"""Tone and zoom beside albumentations 1.3.1 (tests/helpers/make_tone_fixtures.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import squares_in_masks

from fmi_jax.augment.color import change_tone, tones_from_uniform
from fmi_jax.augment.crop import resized_crop, zooms_from_uniform
from fmi_jax.settings import AugmentConfig

FIXTURES = np.load(Path(__file__).parent.parent / "fixtures" / "tones.npz")
IMAGES = FIXTURES["images"]
COUNT, SIDE = IMAGES.shape[:2]
PLAIN = {
    "center_crop": 1.0, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0),
    "flip_horizontal": 0.0, "flip_vertical": 0.0, "jitter_probability": 0.0,
}  # fmt: skip
"""Fields of an augmentation that changes nothing."""


def test_tones_of_the_same_numbers_are_those_of_albumentations() -> None:
    one, zero = np.ones(COUNT), np.zeros(COUNT)
    cases = {
        "brightness_contrast": [FIXTURES["factor"], FIXTURES["summand"], one],
        "gamma": [one, zero, FIXTURES["exponent"]],
        "images": [one, zero, one],
    }
    change = jax.jit(change_tone)
    for name, parameters in cases.items():
        found = change(IMAGES, np.stack(parameters, axis=1).astype(np.float32))
        np.testing.assert_allclose(found, FIXTURES[name], atol=1e-6)
    clipped = FIXTURES["brightness_contrast"]
    assert clipped.min() == 0  # the cases reach both ends
    assert clipped.max() == 1


def test_squares_of_the_same_numbers_are_those_of_albumentations() -> None:
    sides, places = FIXTURES["sides"], FIXTURES["places"]
    numbers = np.column_stack([np.zeros(COUNT), (sides - 16 + 0.5) / (SIDE - 16 + 1), places])

    def zoomed(images, numbers):
        squares = zooms_from_uniform(numbers, 0.5, (16 / SIDE, 1.0), SIDE)
        return resized_crop(images, squares, jnp.zeros((COUNT, 2), bool), SIDE)

    found = jax.jit(zoomed)(IMAGES, numbers.astype(np.float32))
    np.testing.assert_allclose(found, FIXTURES["zoomed"], atol=2e-6)


def test_the_third_study_draws_half_of_each_tone_and_every_side_as_often() -> None:
    count = 7000
    numbers = jax.random.uniform(jax.random.key(0), (count, 4))
    tones = np.asarray(jax.jit(lambda n: tones_from_uniform(n, 0.3, 0.2))(numbers))
    of_gamma, of_others = tones[:, 2] != 1, (tones[:, :2] != [1, 0]).any(axis=1)
    assert not (of_gamma & of_others).any()
    for kind in (of_gamma, of_others):
        assert abs(kind.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / count)
    changes = tones[of_others, 0] - 1, tones[of_others, 1], tones[of_gamma, 2] - 1
    for change in changes:
        assert -0.2 <= change.min() < -0.19
        assert 0.19 < change.max() <= 0.2
    assert abs(np.corrcoef(changes[0], changes[1])[0, 1]) < 0.1

    draw = jax.jit(lambda n: zooms_from_uniform(n, 0.25, (156 / 224, 1.0), 224))
    top, left, height, width = np.asarray(draw(numbers)).T
    whole = height == 224
    assert abs((~whole).mean() - 0.25 * 68 / 69) < 4 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_array_equal(height, width)
    assert {*height[~whole]} == {*range(156, 224)}
    assert min(top.min(), left.min()) == 0
    assert (np.maximum(top, left) + height).max() == 224
    # Beyond a draw of 1 would be a square that is not in the image.
    ends = np.asarray(draw(np.full((1, 4), [0.0, 1 - 2**-23, 1 - 2**-23, 0.0], np.float32)))[0]
    np.testing.assert_array_equal(ends, [0, 0, 224, 224])


def test_masks_are_enlarged_with_their_images() -> None:
    config = AugmentConfig(
        **PLAIN, zoom_probability=1.0, zoom_side=(0.5, 0.9), tone_probability=1.0
    )
    masks, bright, moved = squares_in_masks.augmented(config)
    # A tone may make the background brighter, never as bright as half of the rest.
    assert ((bright > 0.6) == (moved == 1)).mean() > 0.985
    assert all(moved[i].sum() > masks[i].sum() or moved[i].sum() == 0 for i in range(len(masks)))
    assert {*np.unique(moved)} <= {0, 1}
