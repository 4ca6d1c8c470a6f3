"""Deletion and insertion curves beside a plain restatement, and what decides their comparison."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SAME_FLOAT32

from fmi_jax.saliency.comparison import CENTRE, Yardstick, compare
from fmi_jax.saliency.curves import STEPS, area, blurred, deletion_and_insertion


def plain_curve(probability, before, after, ranked):
    """Exchange the pixels of one image one after another, and look after every twentieth."""
    pixels, found = before.copy(), [probability(before)]
    bounds = np.round(np.linspace(0, len(ranked), 21)).astype(int)
    for first, last in itertools.pairwise(bounds):
        for row, column in ranked[first:last]:
            pixels[row, column] = after[row, column]
        found.append(probability(pixels))
    return found


def test_curves_are_those_of_exchanging_one_pixel_after_another() -> None:
    rng = np.random.default_rng(3)
    images = rng.normal(size=(3, 11, 7, 2)).astype(np.float32)
    maps = np.round(rng.uniform(size=(3, 2, 11, 7)), 1).astype(np.float32)  # with ties
    maps[1, 0] = 0
    kernel = rng.normal(size=(11, 7, 2)).astype(np.float32) / 3

    def probability(x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid((x * kernel).sum(axis=(1, 2, 3)))

    found = jax.jit(lambda x, m: deletion_and_insertion(probability, x, m))(images, maps)
    assert found.shape == (3, 2, 2, STEPS + 1)
    blurry = np.asarray(blurred(jnp.asarray(images)))
    for i, image in enumerate(images):
        for j, one in enumerate(maps[i]):
            places = [(r, c) for r in range(11) for c in range(7)]
            ranked = sorted(places, key=lambda at: -one[at])  # stable: row by row
            for k, (before, after) in enumerate(((image, 0 * image), (blurry[i], image))):
                expected = plain_curve(
                    lambda x: 1 / (1 + np.exp(-float((x * kernel).sum()))), before, after, ranked
                )
                np.testing.assert_allclose(found[i, j, k], expected, atol=SAME_FLOAT32)
    # By the trapezoids of NumPy, too.
    expected = np.trapezoid(np.asarray(found, np.float64), dx=1 / STEPS, axis=-1)
    np.testing.assert_allclose(area(np.asarray(found, np.float64)), expected)


def test_a_blurred_image_has_no_detail_and_the_same_plain_colour() -> None:
    images = np.random.default_rng(4).normal(size=(1, 224, 224, 1)).astype(np.float32)
    found = np.asarray(blurred(jnp.asarray(images)))
    # By hand: 11 x 11 pixels, weights of a Gaussian of deviation 5.
    weights = np.exp(-((np.arange(-5, 6) / 5) ** 2) / 2)
    patch = images[0, 95:106, 95:106, 0]
    by_hand = (patch * np.outer(weights, weights)).sum() / np.outer(weights, weights).sum()
    assert found[0, 100, 100, 0] == pytest.approx(by_hand, abs=SAME_FLOAT32)
    np.testing.assert_allclose(blurred(jnp.ones((1, 13, 17, 2))), 1, rtol=SAME_FLOAT32)


def test_a_map_that_is_not_ahead_of_both_rivals_is_noted() -> None:
    yardstick = Yardstick(
        titles={"d": "difference"}, least={"d": -1}, deciding="d", words="d", claim="do"
    )
    values = np.linspace(-0.1, 0.1, 11)
    own = {"good": {"d": values + 0.5}, "same": {"d": values}}
    drawn = {"good": {"d": values}, "same": {"d": values - 0.3}}
    found, notes = compare(yardstick, own, drawn, {"d": values[::-1]}, np.arange(11))
    assert found["methods"]["good"]["trained"]["d"]["value"] == pytest.approx(0.5)
    # A difference may be negative, and its interval lies on both sides of it.
    row = found["methods"]["same"]["random weights"]["d"]
    assert row["low"] < -0.3 < row["high"] < 0
    assert found[CENTRE]["d"]["value"] == pytest.approx(0)
    assert [note.split(" is")[0] for note in notes] == ["same"]
    assert "than the centre of the image:" in notes[0]
