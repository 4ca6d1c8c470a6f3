"""Views of an evaluation: windows as MONAI has them, ten crops as torchvision has them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiling import AS_FOR_USERS
from reference_monai import sliding_window_inference
from reference_packages import torchvision
from tolerances import PARITY_FORWARD, SAME_FLOAT32

from fmi_jax.augment import check_views, over_flips, over_ten_crops, over_windows
from fmi_jax.augment.evaluation_views import (
    likelihoods,
    logits_of,
    window_starts,
    window_weights,
)
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.errors import UsageError
from fmi_jax.protocols.registry import check_read
from fmi_jax.rules import validate
from fmi_jax.settings import ViewsConfig

HEIGHT, WIDTH, SIZE, CLASSES = 43, 37, 17, 3
IMAGES = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
WINDOWS = ViewsConfig(name="windows")


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + shape[-1]).normal(0, 0.5, shape).astype(np.float32)


KERNELS = drawn(5, 5, 3, 7), drawn(3, 3, 7, CLASSES)


def of_pixels(images: jax.Array) -> jax.Array:
    """Logits that depend on nothing but the pixel."""
    return jnp.einsum("bhwc,ck->bhwk", images / 255.0, drawn(3, CLASSES), precision="highest")


def of_neighbours(images: jax.Array) -> jax.Array:
    """Logits of two convolutions, which see where a window ends."""
    x = images / 255.0 - 0.5
    for kernel in KERNELS:
        x = jax.lax.conv_general_dilated(
            jax.nn.relu(x) if kernel is not KERNELS[0] else x,
            *(jnp.asarray(kernel), (1, 1), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
    return x


def of_neighbours_in_torch(x: torch.Tensor) -> torch.Tensor:
    first, second = (torch.from_numpy(kernel.transpose(3, 2, 0, 1)) for kernel in KERNELS)
    x = torch.nn.functional.conv2d(x / 255.0 - 0.5, first, padding="same")
    return torch.nn.functional.conv2d(x.relu(), second, padding="same")


def in_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))


def probabilities(logits: Any, exclusive: bool) -> Any:
    return jax.nn.softmax(logits) if exclusive else jax.nn.sigmoid(logits)


def windows_of(
    network: Callable[..., jax.Array], views: ViewsConfig, size: int, *, exclusive: bool
) -> Any:
    run = jax.jit(lambda images: over_windows(network, images, size, views, exclusive))
    return probabilities(run(IMAGES), exclusive)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize(
    ("overlap", "weights"), [(0.0, "gaussian"), (0.5, "flat"), (0.81, "gaussian")]
)
def test_windows_of_a_network_of_single_pixels_are_the_whole_image(
    overlap: float, weights: str, exclusive: bool
) -> None:
    views = dataclasses.replace(WINDOWS, overlap=overlap, weights=weights)
    found = windows_of(of_pixels, views, SIZE, exclusive=exclusive)
    expected = probabilities(of_pixels(jnp.asarray(IMAGES)), exclusive)
    np.testing.assert_allclose(found, expected, atol=SAME_FLOAT32)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize(("overlap", "weights"), [(0.25, "gaussian"), (0.5, "flat")])
def test_windows_are_those_of_monai(overlap: float, weights: str, exclusive: bool) -> None:
    views = dataclasses.replace(WINDOWS, overlap=overlap, weights=weights)

    def predict(x: torch.Tensor) -> torch.Tensor:
        logits = of_neighbours_in_torch(x)
        return logits.softmax(dim=1) if exclusive else logits.sigmoid()

    expected = sliding_window_inference(
        in_torch(IMAGES),
        (SIZE, SIZE),
        sw_batch_size=5,
        predictor=predict,
        overlap=overlap,
        mode={"gaussian": "gaussian", "flat": "constant"}[weights],
        sigma_scale=0.125,
    )
    found = windows_of(of_neighbours, views, SIZE, exclusive=exclusive)
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(
        found, expected.permute(0, 2, 3, 1).numpy(), atol=PARITY_FORWARD, rtol=0
    )


def test_windows_cover_every_pixel_and_end_where_the_image_does() -> None:
    for length, size, overlap in ((565, 512, 0.5), (3000, 512, 0.25), (97, 31, 0.0), (31, 31, 0.9)):
        starts = window_starts(length, size, overlap)
        assert starts[0] == 0
        assert starts[-1] + size == length
        steps = np.diff(starts)
        assert ((steps > 0) & (steps <= max(1, int(size * (1 - overlap))))).all()
    assert window_starts(31, 31, 0.9) == [0]
    weights = window_weights(SIZE, "gaussian")
    assert (weights[0, 0], weights.max()) == (pytest.approx(1e-3), 1.0)
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])


def test_an_image_of_the_size_of_the_network_is_one_window() -> None:
    square = jnp.asarray(IMAGES[:, :SIZE, :SIZE])
    found = over_windows(of_neighbours, square, SIZE, WINDOWS, True)
    np.testing.assert_allclose(
        jax.nn.softmax(found), jax.nn.softmax(of_neighbours(square)), atol=SAME_FLOAT32
    )
    with pytest.raises(UsageError, match=f"image_size={WIDTH + 1} on images prepared at {WIDTH}"):
        over_windows(of_neighbours, jnp.asarray(IMAGES), WIDTH + 1, WINDOWS, True)


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    def scratch(overlap: float) -> int:
        views = dataclasses.replace(WINDOWS, overlap=overlap)
        run = jax.jit(lambda images: over_windows(of_neighbours, images, 64, views, True))
        images = jax.ShapeDtypeStruct((1, 257, 257, 3), jnp.uint8)
        analysis = run.lower(images).compile(AS_FOR_USERS).memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    few, many = scratch(0.0), scratch(0.9)
    assert len(window_starts(257, 64, 0.9)) ** 2 > 40 * len(window_starts(257, 64, 0.0)) ** 2
    assert many < 1.02 * few
    assert few < 4 * 257**2 * CLASSES * 4


@pytest.mark.parametrize("exclusive", [True, False])
def test_ten_crops_are_those_of_torchvision(exclusive: bool) -> None:
    fraction = 0.79

    def of_part(images: jax.Array) -> jax.Array:
        return of_neighbours(images)[:, 3:, 2:].mean(axis=(1, 2))  # tells mirror images apart

    found = jax.jit(lambda images: over_ten_crops(of_part, images, fraction, exclusive))(IMAGES)
    crops = torchvision.transforms.TenCrop((round(HEIGHT * fraction), round(WIDTH * fraction)))
    logits = torch.stack(
        [
            of_neighbours_in_torch(crop)[:, :, 3:, 2:].mean(dim=(2, 3))
            for crop in crops(in_torch(IMAGES))
        ]
    )
    each = (logits.softmax(dim=-1) if exclusive else logits.sigmoid()).numpy()
    np.testing.assert_allclose(
        probabilities(found, exclusive), each.mean(axis=0), atol=PARITY_FORWARD, rtol=0
    )
    assert np.ptp(each, axis=0).max() > 100 * PARITY_FORWARD


def test_an_image_and_its_mirror_images_have_mirrored_masks() -> None:
    said = jax.jit(lambda images: over_flips(of_neighbours, images, True))
    found, mirrored = (jax.nn.softmax(said(x)) for x in (IMAGES, IMAGES[:, ::-1]))
    np.testing.assert_allclose(found, mirrored[:, ::-1], atol=SAME_FLOAT32)


def test_means_of_sure_predictions_keep_their_order() -> None:
    sure = jnp.array([[-80.0, -30.0, 30.0, 60.0, 80.0]])
    found = logits_of(likelihoods(sure, False) + likelihoods(sure, False), False)
    np.testing.assert_allclose(found, sure, rtol=SAME_FLOAT32)
    extreme = jnp.array([[-1e4, 0.0, 1e4]])
    for exclusive in (True, False):
        assert np.isfinite(logits_of(likelihoods(extreme, exclusive), exclusive)).all()


@pytest.mark.parametrize(
    ("fields", "label", "message"),
    [
        ({"name": "ten_crop"}, Label.MAP, "these labels are masks: expected 'windows'"),
        ({"name": "windows"}, Label.INDEX, "is for masks, .* expected 'ten_crop' or 'center'"),
        ({"name": "windows"}, Label.MAP, "image_size=224 on images prepared at 199: expected"),
    ],
)
def test_views_that_do_not_suit_are_refused(fields: Any, label: Label, message: str) -> None:
    config = ExperimentConfig(views=ViewsConfig(**fields))
    with pytest.raises(UsageError, match=message):
        check_views(config, label, 199)
    config.protocol = "knn"
    with pytest.raises(UsageError, match=r"'knn' does not read views\.name"):
        check_read(config)


def test_fields_of_views_that_nothing_reads_are_refused() -> None:
    config = ExperimentConfig(views=ViewsConfig(name="ten_crop", overlap=0.1))
    with pytest.raises(UsageError, match=r"not read with views\.name='ten_crop'"):
        validate(config)
    config.views.overlap = 0.5
    config.augment.center_crop = 1.0
    with pytest.raises(UsageError, match=r"center_crop=1\.0: all crops would be the whole"):
        check_views(config, Label.VECTOR, 256)
