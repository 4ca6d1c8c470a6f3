"""Distances of outlines and lesions of two masks, beside MONAI and by hand."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from reference_monai import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from fmi_jax.data.labels import IGNORE, Label
from fmi_jax.tasks.outlines import TOLERANCE, outlined, outlined_classes

SHAPE = 31, 23


def blobs(seed: int, share: float) -> np.ndarray:
    """Smooth random shapes that cover about a share of the image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return noise > np.quantile(noise, 1 - share)


def squares(*corners: tuple[int, int]) -> np.ndarray:
    """Squares of 4 pixels with these upper left corners."""
    mask = np.zeros(SHAPE, bool)
    for top, left in corners:
        mask[top : top + 4, left : left + 4] = True
    return mask


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.01, 1), st.floats(0.01, 1))
def test_distances_are_those_of_monai(seed, share, other_share) -> None:
    predicted, true = blobs(seed, share), blobs(seed + 1, other_share)
    pair = [torch.as_tensor(mask)[None, None] for mask in (predicted, true)]
    found = outlined(predicted, true)
    hausdorff = compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    assert found.hausdorff == pytest.approx(hausdorff.item(), rel=1e-6)
    surface = compute_surface_dice(*pair, [TOLERANCE], include_background=True)
    assert found.surface == pytest.approx(surface.item(), rel=1e-6)
    # Seen the other way round, lesions and detections change places.
    back = outlined(true, predicted)
    assert back == found._replace(
        lesions=found.detections, found=found.right, detections=found.lesions, right=found.found
    )


def cases() -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple]]:
    diagonal = math.hypot(*SHAPE)
    none, one = squares(), squares((2, 3))
    yield "the same", one, one, (0.0, 1.0, 1, 1, 1, 1)
    yield "both empty", none, none, (math.nan, math.nan, 0, 0, 0, 0)
    yield "missed", none, one, (diagonal, 0.0, 1, 0, 0, 0)
    yield "false alarm", one, none, (diagonal, 0.0, 0, 0, 1, 0)
    yield "3 to the right", squares((2, 6)), one, (3.0, 8 / 12, 1, 1, 1, 1)
    yield "one of two", one, squares((2, 3), (20, 10)), (None, None, 2, 1, 1, 1)
    yield "one too many", squares((2, 3), (20, 10)), one, (None, None, 1, 1, 2, 1)
    yield "touching corners are one", squares((2, 3), (6, 7)), one, (None, None, 1, 1, 1, 1)
    yield "one over two", squares((2, 3), (2, 7)), squares((2, 3), (2, 8)), (None, None, 2, 2, 1, 1)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"), [pytest.param(*rest, id=name) for name, *rest in cases()]
)
def test_masks_whose_measures_are_known(predicted, true, expected) -> None:
    for value, known in zip(outlined(predicted, true), expected, strict=True):
        assert known is None or value == pytest.approx(known, nan_ok=True)


def test_every_class_of_a_map_is_measured_and_ignored_pixels_are_in_none() -> None:
    true = squares((2, 3)) + 2 * squares((20, 10)).astype(np.uint8)
    predicted = squares((2, 3), (12, 3)) + 2 * squares((20, 11)).astype(np.uint8)
    true[squares((12, 3))] = IGNORE  # where the prediction has one more
    found = outlined_classes(Label.MAP, predicted[None], true[None].astype(np.uint8), 3)
    assert all(np.isnan(values[0, 0]) for values in found.values())
    first, second = ({name: values[0, c] for name, values in found.items()} for c in (1, 2))
    assert first == outlined(squares((2, 3)), squares((2, 3)))._asdict()
    expected = outlined(squares((20, 11)), squares((20, 10)))._asdict()
    assert second == pytest.approx(expected, rel=1e-6)
