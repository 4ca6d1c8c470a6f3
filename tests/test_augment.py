"""Each operation against torchvision's, the random choices against torchvision's distributions."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from tolerances import AUGMENT_8_BIT_CROP, AUGMENT_8_BIT_JITTER, AUGMENT_FLOAT, AUGMENT_GREY

from fmi_jax import augment
from fmi_jax.config import AugmentConfig
from fmi_jax.errors import UsageError

STUDY = AugmentConfig()
OFF = AugmentConfig(
    center_crop=1.0,
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_horizontal=0.0,
    flip_vertical=0.0,
    jitter_probability=0.0,
)
ADJUST = ("brightness", "contrast", "saturation", "hue")
MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.125)


def checked(function):
    """`function` with the shapes and types of its signature enforced."""
    return jaxtyped(typechecker=beartype)(function)


@pytest.fixture(scope="module")
def expected():
    with np.load(Path(__file__).parent / "fixtures" / "augment.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 20011)


@functools.cache
def train_step(config: tuple = (), channels: int = 3, size: int = 19, dtype=jnp.float32):
    """`augment` compiled for a config that differs from the study's in `config`."""
    config = dataclasses.replace(STUDY, **dict(config))
    mean, std = MEAN[:channels], STD[:channels]
    function = checked(augment.augment)
    return jax.jit(lambda keys, images: function(keys, images, config, size, mean, std, dtype))


def random_images(batch: int, side: int = 23, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, side, side, channels), dtype=np.uint8)


def unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


# Operations


@pytest.mark.parametrize("size", [29, 13])
def test_crop_resize_and_flip(expected, size):
    crop = jax.jit(checked(augment.resized_crop), static_argnums=3)
    ours = crop(unit(expected["crop_images"]), expected["crop_boxes"], expected["crop_flips"], size)
    np.testing.assert_allclose(ours, expected[f"crop_tensor_{size}"], rtol=0, atol=AUGMENT_FLOAT)
    np.testing.assert_allclose(
        ours, unit(expected[f"crop_pil_{size}"]), rtol=0, atol=AUGMENT_8_BIT_CROP
    )


def test_resize_takes_the_whole_image(expected):
    row = 1  # of the fixture: the whole image, flipped upside down
    images = unit(expected["crop_images"])[row : row + 1]
    np.testing.assert_allclose(
        augment.resize(images, 29)[0, ::-1],
        expected["crop_tensor_29"][row],
        rtol=0,
        atol=AUGMENT_FLOAT,
    )


@pytest.mark.parametrize("sides", ["41_37", "43_40"])
def test_center_crop(expected, sides):
    ours = augment.center_crop(expected[f"center_{sides}_image"][None], 0.7)[0]
    assert np.array_equal(ours, expected[f"center_{sides}"])


@pytest.mark.parametrize("name", ADJUST)
def test_color_operation(expected, name):
    factors = expected["color_factors"][:, ADJUST.index(name)]
    adjust = jax.jit(checked(getattr(augment, f"adjust_{name}")))
    np.testing.assert_allclose(
        adjust(unit(expected["color_images"]), factors),
        expected[f"color_adjust_{name}"],
        rtol=0,
        atol=AUGMENT_FLOAT,
    )


def test_contrast_of_grey_images(expected):
    np.testing.assert_allclose(
        augment.adjust_contrast(
            unit(expected["color_images"][..., :1]), expected["color_factors"][:, 1]
        ),
        expected["color_grey_contrast"],
        rtol=0,
        atol=AUGMENT_FLOAT,
    )


def test_jitter_in_every_order(expected):
    ours = jax.jit(checked(augment.color_jitter))(
        unit(expected["jitter_images"]), expected["jitter_factors"], expected["jitter_order"]
    )
    np.testing.assert_allclose(ours, expected["jitter"], rtol=0, atol=AUGMENT_FLOAT)


def test_training_and_evaluation_images_are_torchvisions(expected):
    images, mean, std = (expected[name] for name in ("train_images", "mean", "std"))
    mean, std = tuple(mean.tolist()), tuple(std.tolist())
    drawn = augment.Augmentation(
        *(expected[f"train_{name}"] for name in ("boxes", "flips", "factors", "order"))
    )

    @jax.jit
    def train(images, drawn):
        cropped = augment.center_crop(images, STUDY.center_crop).astype(jnp.float32) / 255
        return augment.normalize(augment.apply_augmentation(cropped, drawn, STUDY, 21), mean, std)

    evaluation = jax.jit(
        lambda images: checked(augment.prepare_eval)(images, STUDY, 21, mean, std, jnp.float32)
    )
    trained, evaluated = train(images, drawn), evaluation(images)

    def error(ours, name):
        return np.abs(ours - expected[name]) * expected["std"]  # in units of 0..1

    assert error(trained, "train_tensor").max() <= AUGMENT_FLOAT
    assert error(evaluated, "eval_tensor").max() <= AUGMENT_FLOAT
    assert error(evaluated, "eval_pil").max() <= AUGMENT_FLOAT
    against_pil = error(trained, "train_pil")
    assert against_pil[0].max() <= AUGMENT_8_BIT_CROP  # the first has no jitter
    assert against_pil.mean(axis=(1, 2, 3)).max() <= AUGMENT_8_BIT_JITTER


# Random choices


@pytest.fixture(scope="module")
def drawn(keys):
    """20,011 augmentations, with strengths that tell one number from another."""
    config = AugmentConfig(flip_vertical=0.3, brightness=1.3)
    draw = checked(augment.draw_augmentation)
    return jax.tree.map(np.asarray, jax.jit(lambda keys: draw(keys, config, 224, 224, 3))(keys))


def test_crop_boxes_have_torchvisions_distribution(drawn, expected):
    ours, theirs = drawn.boxes, expected["random_boxes"].astype(int)
    for boxes in (ours, theirs):
        # The study's scale reaches above 1: most draws do not fit, and in one image of nine
        # none of ten does, which leaves it whole.
        assert abs((boxes == [0, 0, 224, 224]).all(axis=1).mean() - 0.114) < 0.01
    quantities = {
        "top": lambda top, left, h, w: top,
        "left": lambda top, left, h, w: left,
        "height": lambda top, left, h, w: h,
        "width": lambda top, left, h, w: w,
        "area": lambda top, left, h, w: h * w,
        "aspect": lambda top, left, h, w: w / h,
        "place": lambda top, left, h, w: top / np.maximum(224 - h, 1),
    }
    for name, quantity in quantities.items():
        p = scipy.stats.ks_2samp(quantity(*ours.T), quantity(*theirs.T)).pvalue
        assert p > 1e-3, name


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 1024),
    st.integers(1, 1024),
    st.tuples(st.floats(1e-4, 2), st.floats(1e-4, 2)),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    st.integers(0, 1000),
)
def test_crop_boxes_lie_in_the_image(height, width, scale, ratio, seed):
    # Uniform numbers, with rows of the smallest and of the largest there is.
    numbers = np.random.default_rng(seed).random((7, 22), np.float32)
    numbers[0], numbers[1] = 0, np.nextafter(np.float32(1), np.float32(0))
    boxes = augment.crop_boxes_from_uniform(
        jnp.array(numbers), height, width, tuple(sorted(scale)), tuple(sorted(ratio))
    )
    corner, size = np.split(np.asarray(boxes), 2, axis=1)
    assert (corner >= 0).all()
    assert (size >= 1).all()
    assert (corner + size <= (height, width)).all()


@pytest.mark.parametrize(
    ("height", "width", "ratio", "box"),
    [
        (10, 40, (3 / 4, 4 / 3), [0, 13, 10, 13]),
        (40, 10, (3 / 4, 4 / 3), [13, 0, 13, 10]),
        (1, 1, (3.0, 4.0), [0, 0, 1, 1]),
        (1, 1, (0.2, 0.3), [0, 0, 1, 1]),
    ],
)
def test_crop_that_never_fits_is_the_largest_central_box(height, width, ratio, box):
    numbers = jnp.full((1, 22), 0.5)
    boxes = augment.crop_boxes_from_uniform(numbers, height, width, (1.5, 2.0), ratio)
    assert np.asarray(boxes).tolist() == [box]


def test_flips_and_jitter_have_torchvisions_distribution(drawn):
    count = len(drawn.flips)
    five_errors = 5 * math.sqrt(0.25 / count)
    assert np.abs(drawn.flips.mean(axis=0) - [0.3, 0.5]).max() < five_errors

    applied = (drawn.factors != np.array([1, 1, 1, 0], np.float32)).any(axis=1)
    assert abs(applied.mean() - 0.8) < five_errors
    ranges = {"brightness": (0, 2.3), "contrast": (0.8, 1.2), "saturation": (0.9, 1.1)}
    ranges["hue"] = (-0.1, 0.1)
    for factors, (low, high) in zip(drawn.factors[applied].T, ranges.values(), strict=True):
        assert scipy.stats.kstest((factors - low) / (high - low), "uniform").pvalue > 1e-3

    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert sorted(map(tuple, orders)) == list(itertools.permutations(range(4)))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_choices_do_not_depend_on_each_other(drawn):
    applied = drawn.factors[:, 0] != 1
    first, top = drawn.order[:, :1] == 0, drawn.boxes[:, :1]
    columns = np.hstack([drawn.flips, drawn.factors, first, top])[applied].T
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / math.sqrt(applied.sum())


def test_switching_an_operation_off_keeps_the_other_choices(keys, drawn):
    config = AugmentConfig(flip_vertical=0.0, brightness=1.3, contrast=0.0)
    some = augment.draw_augmentation(keys[:11], config, 224, 224, 3)
    assert np.array_equal(some.boxes, drawn.boxes[:11])
    assert np.array_equal(some.flips, drawn.flips[:11] & [False, True])
    np.testing.assert_allclose(some.factors, drawn.factors[:11, [0, 2, 3]], rtol=1e-6)
    want = [[(0, None, 1, 2)[op] for op in row if op != 1] for row in drawn.order[:11]]
    assert np.asarray(some.order).tolist() == want


# The whole


def test_an_image_depends_on_its_own_key_alone(keys):
    images, step = random_images(7), train_step()
    together = step(keys[:7], images)
    assert together.shape == (7, 19, 19, 3)
    assert np.array_equal(together, step(keys[:7], images))
    shuffled = np.array([4, 0, 6, 1, 5, 3, 2])
    assert np.array_equal(together[shuffled], step(keys[shuffled], images[shuffled]))
    others = images.copy()
    others[1:] = 0  # padding, say
    assert np.array_equal(together[0], step(keys[:7], others)[0])
    assert np.isfinite(step(keys[:7], others)).all()
    assert not np.array_equal(together, step(keys[7:14], images))
    micro_batch = step(keys[2:5], images[2:5])
    np.testing.assert_allclose(micro_batch, together[2:5], rtol=0, atol=AUGMENT_FLOAT)


def test_without_strengths_training_images_are_evaluation_images(keys):
    images, off = random_images(3, side=19), dataclasses.asdict(OFF)
    step = train_step(tuple(off.items()))
    want = (unit(images) - MEAN) / STD
    np.testing.assert_allclose(step(keys[:3], images), want, rtol=0, atol=AUGMENT_FLOAT)
    evaluation = augment.prepare_eval(images, OFF, 19, MEAN, STD, jnp.float32)
    np.testing.assert_allclose(evaluation, want, rtol=0, atol=AUGMENT_FLOAT)


def test_what_has_no_strength_is_not_computed(keys):
    images, off = random_images(7, side=19), tuple(dataclasses.asdict(OFF).items())

    def operations(step, images):
        program = step.lower(keys[:7], images).compile().as_text()
        return {op for op in ("dot(", "while(", "xor(", "sort(") if op in program}

    assert operations(train_step(off), images) == set()
    assert operations(train_step(), random_images(7)) == {"dot(", "while(", "xor(", "sort("}


def test_grey_images(keys):
    grey = random_images(7, channels=1)
    ours = np.asarray(train_step(channels=1)(keys[:7], grey))
    assert ours.shape == (7, 19, 19, 1)
    # As if the image had three equal channels, whose saturation and hue mean nothing.
    colored = np.asarray(train_step()(keys[:7], grey.repeat(3, axis=-1)))
    difference = (ours * STD[0] + MEAN[0]) - (colored * STD + MEAN)
    assert np.abs(difference).max() < AUGMENT_GREY


def test_dtype_is_the_one_asked_for(keys):
    images = random_images(7)
    half = train_step(dtype=jnp.bfloat16)(keys[:7], images)
    assert half.dtype == jnp.bfloat16
    assert np.array_equal(half, train_step()(keys[:7], images).astype(jnp.bfloat16))


def test_wrong_input_is_refused(keys):
    images = random_images(2)
    with pytest.raises(UsageError, match="one value for each of 3 channels"):
        augment.prepare_eval(images, STUDY, 19, (0.5,), (0.5,), jnp.float32)
    with pytest.raises(UsageError, match="std above 0"):
        augment.prepare_eval(images, STUDY, 19, MEAN, (1.0, 0.0, 1.0), jnp.float32)
    with pytest.raises(UsageError, match="1 or 3 channels, these have 2"):
        augment.augment(keys[:2], images[..., :2], STUDY, 19, MEAN[:2], STD[:2], jnp.float32)
    with pytest.raises(TypeCheckError, match="'images'"):
        checked(augment.prepare_eval)(jnp.array(unit(images)), STUDY, 19, MEAN, STD, jnp.float32)
