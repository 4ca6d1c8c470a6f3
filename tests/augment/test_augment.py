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
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from tolerances import AUGMENT_8_BIT_CROP, AUGMENT_8_BIT_JITTER, AUGMENT_FLOAT, AUGMENT_GREY

from fmi_jax.augment import View, augment, dino_views, prepare_eval, views
from fmi_jax.augment.blur import gaussian_blur
from fmi_jax.augment.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    grayscale,
    solarize,
)
from fmi_jax.augment.crop import center_crop, crop_boxes_from_uniform, resize, resized_crop
from fmi_jax.augment.erase import erase, erase_boxes_from_uniform
from fmi_jax.augment.pipeline import Augmentation, apply_augmentation, draw_augmentation
from fmi_jax.augment.warp import affine, perspective, rotate
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.nn import hardware
from fmi_jax.rules import validate
from fmi_jax.settings import AugmentConfig

STUDY = AugmentConfig()
OFF = AugmentConfig(
    center_crop=1.0,
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_horizontal=0.0,
    flip_vertical=0.0,
    jitter_probability=0.0,
)
EVERY = AugmentConfig(  # all there is, with probabilities that tell one from another
    flip_vertical=0.3,
    brightness=1.3,
    rotation_probability=0.4,
    grayscale_probability=0.2,
    blur_probability=0.6,
    affine_probability=0.7,
    perspective_probability=0.5,
    solarize_probability=0.1,
    erase_probability=0.9,
)
ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
WARPS = {
    "rotate": rotate,
    "affine": affine,
    "perspective": perspective,
    "blur": gaussian_blur,
}
MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.125)


def checked(function):
    """`function` with the shapes and types of its signature enforced."""
    return jaxtyped(typechecker=beartype)(function)


@pytest.fixture(scope="module")
def expected():
    with np.load(Path(__file__).parent.parent / "fixtures" / "augment.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 20011)


@functools.cache
def train_step(config: tuple = (), channels: int = 3, size: int = 19, dtype=jnp.float32):
    """`augment` compiled for a config that differs from the study's in `config`."""
    config = dataclasses.replace(STUDY, **dict(config))
    mean, std = MEAN[:channels], STD[:channels]
    function = checked(augment)
    return jax.jit(lambda keys, images: function(keys, images, config, size, mean, std, dtype))


def random_images(batch: int, side: int = 23, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, side, side, channels), dtype=np.uint8)


def unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


# Operations


@pytest.mark.parametrize("size", [29, 13])
def test_crop_resize_and_flip(expected, size):
    crop = jax.jit(checked(resized_crop), static_argnums=3)
    ours = crop(unit(expected["crop_images"]), expected["crop_boxes"], expected["crop_flips"], size)
    np.testing.assert_allclose(ours, expected[f"crop_tensor_{size}"], rtol=0, atol=AUGMENT_FLOAT)
    np.testing.assert_allclose(
        ours, unit(expected[f"crop_pil_{size}"]), rtol=0, atol=AUGMENT_8_BIT_CROP
    )


def test_resize_takes_the_whole_image(expected):
    row = 1  # of the fixture: the whole image, flipped upside down
    images = unit(expected["crop_images"])[row : row + 1]
    np.testing.assert_allclose(
        jax.jit(resize, static_argnums=1)(images, 29)[0, ::-1],
        expected["crop_tensor_29"][row],
        rtol=0,
        atol=AUGMENT_FLOAT,
    )


@pytest.mark.parametrize("sides", ["41_37", "43_40"])
def test_center_crop(expected, sides):
    ours = center_crop(expected[f"center_{sides}_image"][None], 0.7)[0]
    assert np.array_equal(ours, expected[f"center_{sides}"])


@pytest.mark.parametrize("adjust", ADJUST)
def test_color_operation(expected, adjust):
    factors = expected["color_factors"][:, ADJUST.index(adjust)]
    np.testing.assert_allclose(
        jax.jit(checked(adjust))(unit(expected["color_images"]), factors),
        expected[f"color_{adjust.__name__}"],
        rtol=0,
        atol=AUGMENT_FLOAT,
    )


def test_contrast_of_grey_images(expected):
    np.testing.assert_allclose(
        adjust_contrast(unit(expected["color_images"][..., :1]), expected["color_factors"][:, 1]),
        expected["color_grey_contrast"],
        rtol=0,
        atol=AUGMENT_FLOAT,
    )


def test_jitter_in_every_order(expected):
    ours = jax.jit(checked(color_jitter))(
        unit(expected["jitter_images"]), expected["jitter_factors"], expected["jitter_order"]
    )
    np.testing.assert_allclose(ours, expected["jitter"], rtol=0, atol=AUGMENT_FLOAT)


@pytest.mark.parametrize("operation", [grayscale, solarize])
def test_grayscale_and_solarize(expected, operation):
    images = unit(expected["color_images"])
    chosen = np.array([True, False, True, True, False])
    ours = np.asarray(jax.jit(checked(operation))(images, chosen))
    np.testing.assert_allclose(
        ours[chosen], expected[operation.__name__][chosen], rtol=0, atol=AUGMENT_FLOAT
    )
    assert np.array_equal(ours[~chosen], images[~chosen])


@pytest.mark.parametrize("back_end", ["cpu", "tpu"])
@pytest.mark.parametrize("name", WARPS)
def test_pixels_move_as_in_torchvision(expected, name, back_end, monkeypatch):
    monkeypatch.setattr(hardware, "platform", lambda: back_end)
    images = unit(expected["warp_images"])
    ours = jax.jit(checked(WARPS[name]))(images, expected[f"{name}_parameters"])
    np.testing.assert_allclose(ours, expected[name], rtol=0, atol=AUGMENT_FLOAT)
    assert np.array_equal(ours[0], images[0])  # whose parameters change nothing


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.floats(-360, 360), st.sampled_from([-45.0, 0.0, 45.0, 90.0, 135.0, 180.0])
            ),
            st.integers(-9, 9),
            st.integers(-9, 9),
            st.floats(0.2, 4),
            st.floats(-60, 60),
        ),
        min_size=3,
        max_size=3,
    )
)
def test_affine_maps_of_a_tpu_take_the_same_pixels(parameters):
    parameters = np.array(parameters, np.float32)
    images = np.random.default_rng(0).random((3, 13, 19, 2), np.float32)
    on_tpu, on_cpu = (compiled_affine(name)(images, parameters) for name in ("tpu", "cpu"))
    assert np.array_equal(on_tpu, on_cpu)


@functools.cache
def compiled_affine(back_end: str):
    """`affine` as it is on that back end, computed on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "platform", lambda: back_end)
        images = jax.ShapeDtypeStruct((3, 13, 19, 2), jnp.float32)
        parameters = jax.ShapeDtypeStruct((3, 5), jnp.float32)
        return jax.jit(lambda *x: affine(*x)).lower(images, parameters).compile()


def test_erased_boxes():
    images = unit(random_images(3)) + 1
    erased = np.array(erase(images, np.array([[3, 5, 7, 11], [0, 0, 0, 0], [22, 0, 1, 23]])))
    for i, rows, columns in ((0, slice(3, 10), slice(5, 16)), (2, slice(22, 23), slice(0, 23))):
        assert not erased[i, rows, columns].any()
        erased[i, rows, columns] = images[i, rows, columns]
    assert np.array_equal(erased, images)


@settings(max_examples=25)
@given(st.lists(st.integers(-40, 40), min_size=16, max_size=16), st.floats(0.1, 1e3))
def test_impossible_perspectives_give_pixels(numbers, scale):
    corners = scale * np.array(numbers, np.float32).reshape(2, 4, 2)  # on one line, at one point
    images = np.ones((2, 13, 11, 1), np.float32)
    ours = jitted_perspective(images, corners)
    assert np.isfinite(ours).all()
    assert ours.min() >= 0
    assert ours.max() <= 1 + AUGMENT_FLOAT


jitted_perspective = jax.jit(perspective)


def test_training_and_evaluation_images_are_torchvisions(expected):
    images, mean, std = (expected[name] for name in ("train_images", "mean", "std"))
    mean, std = tuple(mean.tolist()), tuple(std.tolist())
    drawn = {name: expected[f"train_{name}"] for name in ("boxes", "flips", "factors", "order")}
    others = {*Augmentation._fields} - {*drawn, "field", "tones", "zooms"}  # albumentations'
    every = {name: expected[f"every_{name}"] for name in others}
    every = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, every)

    @functools.partial(jax.jit, static_argnums=2)
    def train(images, drawn, everything):
        cropped = center_crop(images, STUDY.center_crop).astype(jnp.float32) / 255
        config = EVERY if everything else STUDY
        return apply_augmentation(cropped, Augmentation(**drawn), config, 21, mean, std)

    evaluation = jax.jit(
        lambda images: checked(prepare_eval)(images, STUDY, 21, mean, std, jnp.float32)
    )
    trained, evaluated = train(images, drawn | every, False), evaluation(images)

    def error(ours, name):
        return np.abs(ours - expected[name]) * expected["std"]  # in units of 0..1

    assert error(trained, "train_tensor").max() <= AUGMENT_FLOAT
    assert error(evaluated, "eval_tensor").max() <= AUGMENT_FLOAT
    assert error(evaluated, "eval_pil").max() <= AUGMENT_FLOAT
    against_pil = error(trained, "train_pil")
    assert against_pil[0].max() <= AUGMENT_8_BIT_CROP  # the first has no jitter
    assert against_pil.mean(axis=(1, 2, 3)).max() <= AUGMENT_8_BIT_JITTER

    with_everything = train(expected["every_images"], drawn | every, True)
    assert error(with_everything, "every").max() <= AUGMENT_FLOAT


# Random choices


@pytest.fixture(scope="module")
def drawn(keys):
    """20,011 augmentations with `EVERY` operation."""
    return jax.tree.map(np.asarray, jitted_draw(EVERY)(keys))


def jitted_draw(config: AugmentConfig):
    draw = checked(draw_augmentation)
    return jax.jit(lambda keys: draw(keys, config, 224, 224, 3, 224))


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


@settings(max_examples=25)
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
    boxes = crop_boxes_from_uniform(
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
    boxes = crop_boxes_from_uniform(numbers, height, width, (1.5, 2.0), ratio)
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


def assert_same_distribution(ours, theirs, quantities):
    for name, quantity in quantities.items():
        assert scipy.stats.ks_2samp(quantity(*ours.T), quantity(*theirs.T)).pvalue > 1e-3, name


def test_other_choices_have_torchvisions_distribution(drawn, expected):
    count = len(drawn.angles)
    turned, blurred = drawn.angles != 0, drawn.sigmas != 0
    mapped = (drawn.affine != [0, 0, 0, 1, 0]).any(axis=1)
    own = np.array([[0, 0], [223, 0], [223, 223], [0, 223]])
    seen = (drawn.corners != own).any(axis=(1, 2))
    erased = drawn.erased.any(axis=1)
    shares = [turned, drawn.grey, blurred, mapped, seen, drawn.solarized]
    wanted = [0.4, 0.2, 0.6, 0.7, 0.5, 0.1]
    assert np.abs(np.mean(shares, axis=1) - wanted).max() < 5 * math.sqrt(0.25 / count)

    uniform = scipy.stats.kstest((drawn.angles[turned] + 5) / 10, "uniform")
    assert uniform.pvalue > 1e-3
    uniform = scipy.stats.kstest((drawn.sigmas[blurred] - 0.1) / 1.9, "uniform")
    assert uniform.pvalue > 1e-3

    names = ("angle", "right", "down", "scale", "shear")
    columns = {name: lambda *row, i=i: row[i] for i, name in enumerate(names)}
    assert_same_distribution(drawn.affine[mapped], expected["random_affine"], columns)
    assert np.array_equal(drawn.affine[:, 1:3], np.round(drawn.affine[:, 1:3]))

    theirs = expected["random_corners"].reshape(-1, 8)
    for ours, allowed in zip(drawn.corners[seen].reshape(-1, 8).T, theirs.T, strict=True):
        places, counts = np.unique(ours, return_counts=True)
        assert np.array_equal(places, np.unique(allowed))
        assert scipy.stats.chisquare(counts).pvalue > 1e-4  # of eight

    theirs = expected["random_erased"].astype(int)
    boxes = {
        "top": lambda top, left, h, w: top,
        "left": lambda top, left, h, w: left,
        "area": lambda top, left, h, w: h * w,
        "aspect": lambda top, left, h, w: w / h,
        "place": lambda top, left, h, w: top / (224 - h),
    }
    found = (theirs[:, 2:] < 224).all(axis=1)
    assert abs(erased.mean() - 0.9 * found.mean()) < 0.01
    assert_same_distribution(drawn.erased[erased], theirs[found], boxes)


@settings(max_examples=25)
@given(
    st.integers(1, 1024),
    st.integers(1, 1024),
    st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)),
    st.integers(0, 1000),
)
def test_erased_boxes_lie_in_the_image(height, width, area, seed):
    numbers = np.random.default_rng(seed).random((7, 23), np.float32)
    numbers[0], numbers[1] = 0, np.nextafter(np.float32(1), np.float32(0))
    boxes = erase_boxes_from_uniform(jnp.array(numbers), 1.0, tuple(sorted(area)), height, width)
    corner, size = np.split(np.asarray(boxes), 2, axis=1)
    assert (corner >= 0).all()
    assert (size < (height, width)).all()
    assert (corner + size <= (height, width)).all()


def test_erased_box_of_the_smallest_numbers():
    box = erase_boxes_from_uniform(jnp.zeros((1, 23)), 0.5, (0.02, 0.33), 224, 224)
    # 2% of the image, height to width as 0.3: the ratio is that way round in RandomErasing.
    assert np.asarray(box).tolist() == [[0, 0, 17, 58]]


def test_choices_do_not_depend_on_each_other(drawn):
    applied = drawn.factors[:, 0] != 1
    first, top = drawn.order[:, :1] == 0, drawn.boxes[:, :1]
    others = np.stack([drawn.angles, drawn.grey, drawn.sigmas, drawn.solarized], axis=1)
    places = np.hstack([drawn.affine, drawn.corners[:, 0, :1], drawn.erased[:, :1]])
    columns = np.hstack([drawn.flips, drawn.factors, first, top, others, places])[applied].T
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / math.sqrt(applied.sum())


def test_switching_operations_off_keeps_the_other_choices(keys, drawn):
    config = dataclasses.replace(
        EVERY, flip_vertical=0.0, contrast=0.0, rotation_probability=0.0, affine_probability=0.0
    )
    some = jitted_draw(config)(keys[:11])
    for name in ("boxes", "grey", "sigmas", "corners", "solarized", "erased"):
        assert np.array_equal(getattr(some, name), getattr(drawn, name)[:11]), name
    assert np.array_equal(some.flips, drawn.flips[:11] & [False, True])
    assert not np.any(some.angles)
    assert np.array_equal(some.affine, np.tile([0, 0, 0, 1, 0], (11, 1)))
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
    evaluation = prepare_eval(images, OFF, 19, MEAN, STD, jnp.float32)
    np.testing.assert_allclose(evaluation, want, rtol=0, atol=AUGMENT_FLOAT)


def test_what_has_no_strength_is_not_computed(keys):
    images, off = random_images(7, side=19), tuple(dataclasses.asdict(OFF).items())

    def operations(step, images):
        program = step.lower(keys[:7], images).compile().as_text()
        return {op for op in ("dot(", "while(", "xor(", "sort(", "cosine(") if op in program}

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


def test_views_are_augmentations_with_keys_of_their_own(keys):
    images = random_images(3)
    first = dataclasses.replace(STUDY, jitter_probability=0.0)
    second = dataclasses.replace(first, crop_scale=(0.05, 0.4), blur_probability=0.5)
    wanted = (View(first, 19), View(second, 11, count=2))

    @jax.jit
    def together(keys, images):
        return checked(views)(keys, images, wanted, MEAN, STD, jnp.float32)

    @jax.jit
    def alone(keys, images):
        view_keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(keys)
        return augment(view_keys, images, second, 11, MEAN, STD, jnp.float32)

    one, two, three = together(keys[:3], images)
    assert one.shape == (3, 19, 19, 3)
    assert two.shape == three.shape == (3, 11, 11, 3)
    assert not np.array_equal(two, three)
    np.testing.assert_allclose(
        three, alone(keys[:3], images), rtol=0, atol=AUGMENT_FLOAT / min(STD)
    )
    order = np.array([2, 0, 1])
    for before, after in zip((one, two, three), together(keys[order], images[order]), strict=True):
        assert np.array_equal(before[order], after)


def test_dino_views_are_the_published_ones(keys):
    batches = jax.eval_shape(
        lambda keys, images: views(keys, images, dino_views(), MEAN, STD, jnp.bfloat16),
        keys[:3],
        jax.ShapeDtypeStruct((3, 256, 256, 3), jnp.uint8),
    )
    assert [batch.shape for batch in batches] == 2 * [(3, 224, 224, 3)] + 6 * [(3, 96, 96, 3)]
    assert {batch.dtype for batch in batches} == {jnp.dtype(jnp.bfloat16)}
    blur = [view.config.blur_probability for view in dino_views()]
    solarized = [view.config.solarize_probability for view in dino_views()]
    assert (blur, solarized) == ([1.0, 0.1, 0.5], [0.0, 0.2, 0.0])


def test_wrong_input_is_refused(keys):
    images = random_images(2)

    def trace(function, *arguments):
        return jax.eval_shape(lambda: function(*arguments))

    with pytest.raises(UsageError, match="one value for each of 3 channels"):
        trace(prepare_eval, images, STUDY, 19, (0.5,), (0.5,), jnp.float32)
    with pytest.raises(UsageError, match="std above 0"):
        trace(prepare_eval, images, STUDY, 19, MEAN, (1.0, 0.0, 1.0), jnp.float32)
    with pytest.raises(UsageError, match="1 or 3 channels, these have 2"):
        trace(augment, keys[:2], images[..., :2], STUDY, 19, MEAN[:2], STD[:2], jnp.float32)
    with pytest.raises(TypeCheckError, match="'images'"):
        trace(checked(prepare_eval), jnp.array(unit(images)), STUDY, 19, MEAN, STD, jnp.float32)
    with pytest.raises(UsageError, match="grayscale_probability=0"):
        grayscale(jnp.zeros((1, 5, 3, 2)), jnp.array([True]))


@pytest.mark.parametrize(
    ("change", "expectation"),
    [
        ({"blur_probability": 1.1}, "expected between 0 and 1"),
        ({"blur_sigma": (0.0, 2.0)}, "expected 0 < low <= high"),
        ({"rotation_degrees": -5.0}, "expected 0 or more"),
        ({"affine_scale": (3.3, 0.1)}, "expected 0 < low <= high"),
        ({"affine_translate": (0.1, -0.3)}, "expected two numbers between 0 and 1"),
        ({"affine_shear": 90.0}, "expected degrees from 0 to below 90"),
        ({"perspective_distortion": 1.2}, "expected between 0 and 1"),
        ({"erase_area": (0.02, 1.5)}, "expected at most 1"),
    ],
)
def test_wrong_strengths_are_refused(change, expectation):
    (name,) = change
    with pytest.raises(UsageError, match=f"augment.{name}=.*{expectation}"):
        validate(ExperimentConfig(augment=AugmentConfig(**change)))
