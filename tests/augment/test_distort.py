"""Distortions beside albumentations 1.3.1 (tests/helpers/make_distortion_fixtures.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import squares_in_masks

from fmi_jax.augment.distort import (
    KINDS,
    distort,
    distort_nearest,
    draw_field,
    elastic_field,
    grid_field,
    optical_field,
)
from fmi_jax.settings import AugmentConfig

FIXTURES = np.load(Path(__file__).parent.parent / "fixtures" / "distortions.npz")
SIDE = len(FIXTURES["image"])
POINTS = np.array([[50, 50], [50, 10], [10, 10]], np.float64)  # of albumentations, at 60 pixels
IMAGES = np.stack([FIXTURES["image"]])


def fields() -> dict[str, jax.Array]:
    of = {name: jnp.asarray(FIXTURES[name], jnp.float32) for name in FIXTURES}
    return {
        "noise": elastic_field(of["noise"], of["noise_moves"]),
        "elastic": elastic_field(of["noise"], of["elastic_moves"]),
        "grid": grid_field(of["grid_steps"], SIDE),
        "grid_uneven": grid_field(of["grid_uneven_steps"], len(FIXTURES["uneven"])),
        "barrel": optical_field(of["barrel_bend"], SIDE),
        "cushion": optical_field(of["cushion_bend"], SIDE),
    }


FIELDS = {name: np.asarray(field) for name, field in jax.jit(fields)().items()}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_the_same_numbers_are_those_of_albumentations(name) -> None:
    expected = FIXTURES[f"{name}_field"].astype(np.float64)
    if name == "elastic":  # which moves the image first, and then looks the moved one up
        moved = np.column_stack([POINTS + FIXTURES["elastic_moves"], np.ones(3)])
        back = np.linalg.solve(moved, POINTS)
        expected = np.concatenate([expected, np.ones((SIDE, SIDE, 1))], axis=-1) @ back
    # albumentations computes in float32, and moves points rounded to it.
    np.testing.assert_allclose(FIELDS[name] - 0.5, expected, atol=2e-4 * SIDE / 60)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "elastic"])
def test_images_are_those_of_albumentations(name) -> None:
    image = FIXTURES["uneven" if name == "grid_uneven" else "image"]
    result = distort(jnp.asarray(image[None], jnp.float32), FIELDS[name][None])[0]
    # OpenCV rounds places to 1/32 of a pixel, and noise has steps of 255 grey levels there.
    difference = np.abs(np.asarray(result) - FIXTURES[f"{name}_result"])
    assert difference.mean() < 1.5
    assert difference.max() < 255 / 32 + 1


def test_the_nearest_pixel_is_that_of_the_same_place() -> None:
    image = np.arange(SIDE * SIDE, dtype=np.float32).reshape(1, SIDE, SIDE, 1)
    for name in ("elastic", "barrel"):
        found = np.asarray(distort_nearest(image, FIELDS[name][None]))[0, ..., 0]
        x, y = np.moveaxis(FIELDS[name], -1, 0) - 0.5
        inside = (x > 0) & (x < SIDE - 1) & (y > 0) & (y < SIDE - 1)
        assert inside.mean() > 0.5
        assert np.abs(found // SIDE - y)[inside].max() <= 0.5 + 1e-4
        assert np.abs(found % SIDE - x)[inside].max() <= 0.5 + 1e-4


def test_a_share_of_the_images_is_distorted_by_each_kind() -> None:
    side, count = 23, 600
    draw = jax.jit(lambda keys: draw_field(keys, 0.5, KINDS, side))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), count)))
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    moved = found - np.stack([x, y], axis=-1)
    still = (moved == 0).all(axis=(1, 2, 3))
    assert abs(still.mean() - 0.5) < 3 * np.sqrt(0.25 / count)
    # A grid moves all rows alike, a lens the middle by half a pixel; noise does neither.
    of_grid = (np.abs(np.ptp(moved[..., 0], axis=1)) < 1e-4).all(axis=1) & ~still
    middle = moved[:, side // 2, side // 2]
    of_lens = (np.abs(middle - 0.5) < 1e-3).all(axis=1) & ~of_grid & ~still
    of_noise = ~(of_grid | of_lens | still)
    share = 0.5 / len(KINDS)
    for kind in (of_grid, of_lens, of_noise):
        assert abs(kind.mean() - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_masks_are_distorted_with_their_images() -> None:
    config = AugmentConfig(
        center_crop=1.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_horizontal=0.0,
        flip_vertical=0.0, jitter_probability=0.0, distort_probability=1.0,
    )  # fmt: skip
    masks, bright, moved = squares_in_masks.augmented(config)
    assert ((bright > 0.5) == (moved == 1)).mean() > 0.99
    assert all((moved[i] != masks[i]).mean() > 0.01 for i in range(len(masks)))
    assert {*np.unique(moved)} == {0, 1}
