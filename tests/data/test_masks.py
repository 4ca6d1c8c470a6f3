"""Masks of own data: prepared, loaded by threads and processes, and moved with their images."""

import csv
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from raw_sets import write_aptos

from fmi_jax import augment
from fmi_jax.augment.maps import move_maps
from fmi_jax.augment.pipeline import apply_augmentation, draw_augmentation, unit
from fmi_jax.data import loader
from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.data.prepared import DatasetInfo, manifest_sha256
from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.masks import fill_runs, read_mask, resize_mask
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.drawn import fundus_lesions
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.data.registry import DATASETS
from fmi_jax.data.subset import training_subset
from fmi_jax.errors import UsageError, UserError
from fmi_jax.report.charts import PREDICTED_COLOUR, TRUE_COLOUR, outline, outlined
from fmi_jax.settings import AugmentConfig
from fmi_jax.tasks.registry import suitable

SIZE, COUNT = 13, 31
CLASSES = ("background", "drusen", "haemorrhage")
SHARES = ("train", "train", "train", "val", "test")


def write_table(folder: Path, rows: list[tuple[str, ...]], header: str = "path,mask,split") -> Path:
    table = folder / "table.csv"
    table.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    return table


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A table, and the united mask of each image; every fifth image has none."""
    folder = tmp_path_factory.mktemp("raw")
    rows, united = [], {}
    for i in range(COUNT):
        rng = np.random.default_rng(i)
        height, width = rng.integers(17, 43, size=2)
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        name = f"eye{i:02}.png"
        Image.fromarray(pixels).save(folder / name)
        masks = [np.where(rng.random((height, width)) < 0.3, c, 0) for c in (1, 2)]
        files = [f"eye{i:02}_{c}.png" for c in (1, 2)]
        if i % 5 == 0:
            masks, files = [], []
        for mask, file in zip(masks, files, strict=True):
            Image.fromarray(mask.astype(np.uint8)).save(folder / file)
        rows.append((name, "|".join(files), SHARES[i % 5]))
        united[name] = functools.reduce(np.maximum, masks, np.zeros((height, width), int))
    return write_table(folder, rows), united


@pytest.fixture(scope="module")
def dataset(raw, tmp_path_factory):
    spec = csv_spec("spots", classes=CLASSES)
    return prepare(spec, raw[0], tmp_path_factory.mktemp("data"), size=SIZE, processes=2)


def nearest(mask: np.ndarray) -> np.ndarray:
    """The prepared mask of a raw one: each pixel is the one at its centre."""
    places = [(np.arange(SIZE) * 2 + 1) * side // (2 * SIZE) for side in mask.shape]
    return mask[np.ix_(*places)]


def test_masks_lie_lossless_beside_their_images(raw, dataset):
    info = dataset.info
    assert (info.label, info.task, info.metric) == (Label.MAP, "segmentation", "dice")
    assert info.classes == CLASSES
    assert DatasetInfo.from_json(info.to_json()) == info
    for split in SPLITS:
        rows = dataset.split(split)
        present = dataset.labels(split)
        for row, name in enumerate(dataset.ids(split)):
            image, mask = rows[row]
            assert image.shape == (SIZE, SIZE, 3)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, nearest(raw[1][name]))
            np.testing.assert_array_equal(present[row], np.isin(range(3), raw[1][name]))
        np.testing.assert_array_equal(info.class_counts[split], present.sum(axis=0))


def test_a_second_preparation_does_nothing_until_a_mask_changes(raw, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for path in raw[0].parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spec = csv_spec("spots", classes=CLASSES)
    again = functools.partial(prepare, spec, folder / raw[0].name, tmp_path, size=SIZE)
    first = again()
    assert again().info == first.info
    changed = folder / "eye07_1.png"
    mask = np.asarray(Image.open(changed)).copy()
    mask[0] = 2 - mask[0]
    Image.fromarray(mask).save(changed)
    with pytest.raises(UserError, match="differs in"):
        again()
    again(overwrite=True)


def test_a_fraction_of_the_training_images_keeps_those_without_a_lesion(dataset):
    part = training_subset(dataset, fraction=0.5)
    present = part.labels("train")
    assert len(present) == round(0.5 * dataset.info.counts["train"])
    assert set(present[:, 1]) == {0, 1}
    with pytest.raises(UsageError, match="labels of spots are masks"):
        training_subset(dataset, shots=1)


def test_threads_and_processes_yield_the_same_maps_and_padding_counts_nowhere(dataset):
    read = functools.partial(loader.train_batches, dataset, batch_size=5, seed=3)
    batches = [next(iter(read(workers=workers))) for workers in (0, 1)]
    for name in ("inputs", "labels", "index"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
    split = dataset.split("train")
    assert (batches[0]["labels"].shape, batches[0]["labels"].dtype) == ((5, SIZE, SIZE), np.uint8)
    for mask, row in zip(batches[0]["labels"], batches[0]["index"], strict=True):
        np.testing.assert_array_equal(mask, split[row][1])
    *_, last = loader.eval_batches(dataset, "test", batch_size=5)
    padding = last["mask"] == 0
    assert padding.any()
    assert (last["labels"][padding] == IGNORE).all()
    assert (last["labels"][~padding] != IGNORE).any()


def save(folder: Path, name: str, values: np.ndarray, **options) -> Path:
    Image.fromarray(values).save(folder / name, **options)
    return folder / name


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 3))
def test_every_form_of_a_mask_means_the_same_classes(tmp_path_factory, seed, k, count):
    folder, rng = tmp_path_factory.getbasetemp(), np.random.default_rng(seed)
    height, width = rng.integers(1, 23, size=2)
    masks = rng.integers(0, k, (count, height, width)).astype(np.uint8)
    paths = [save(folder, f"{i}.png", mask) for i, mask in enumerate(masks)]
    palette = Image.fromarray(masks[0], "P")
    palette.putpalette(rng.integers(0, 255, 3 * 256, np.uint8).tobytes())
    palette.save(paths[0])
    mask, digests = read_mask(paths, size=(width, height), num_classes=k)
    np.testing.assert_array_equal(mask, masks.max(axis=0))
    assert len(digests) == count
    if k == 2:  # white counts as one
        white = masks[0] * np.uint8(255)
        opaque = np.full_like(white, 255)
        files = (
            save(folder, "white.tif", white),
            save(folder, "white.gif", white),
            save(folder, "binary.png", masks[0].astype(bool)),
            save(folder, "rgb.png", np.dstack([white] * 3)),
            save(folder, "rgba.png", np.dstack([white] * 3 + [opaque])),
            save(folder, "la.png", np.dstack([white, opaque])),
        )
        for path in files:
            found, _ = read_mask([path], size=(width, height), num_classes=2)
            np.testing.assert_array_equal(found, masks[0])
    new = int(rng.integers(1, 23))
    places = [(np.arange(new) * 2 + 1) * side // (2 * new) for side in mask.shape]
    np.testing.assert_array_equal(resize_mask(mask, size=new), mask[np.ix_(*places)])


@pytest.mark.parametrize(
    ("name", "values", "fault"),
    [
        ("m.png", np.full((11, 7), 3, np.uint8), "value 3 is no class; expected 0 .* to 2"),
        ("m.png", np.full((11, 7), 255, np.uint8), "value 255 is no class"),
        ("m.png", np.zeros((7, 11), np.uint8), "11 x 7 pixels; expected .* 7 x 11"),
        ("m.png", np.full((11, 7, 3), (200, 0, 0), np.uint8), "pixels of mode 'RGB'; expected a"),
        ("m.png", np.full((11, 7, 3), 200, np.uint8), "pixels of mode 'RGB'; expected a grey"),
        ("m.png", np.full((11, 7, 4), (0, 0, 0, 1), np.uint8), "pixels of mode 'RGBA'"),
        ("m.jpg", np.zeros((11, 7), np.uint8), "cannot be read"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused(tmp_path, name, values, fault):
    path = save(tmp_path, name, values)
    with pytest.raises(UserError, match=f"mask {name}: {fault}"):
        read_mask([path], size=(7, 11), num_classes=3)


def test_a_moving_picture_is_no_mask(tmp_path):
    frames = [Image.new("L", (7, 11), value) for value in (0, 255)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"mask m\.gif: 2 frames; expected a single image"):
        read_mask([tmp_path / "m.gif"], size=(7, 11), num_classes=2)


def test_runs_go_down_the_columns_and_stay_inside():
    mask = fill_runs([(2, 3), (5, 1), (20, 1)], size=(7, 3))
    expected = np.zeros((3, 7), np.uint8)
    expected[2, 0] = expected[:, 1] = expected[2, 6] = 1
    np.testing.assert_array_equal(mask, expected)
    for start, length in ((20, 2), (-1, 1), (3, -1)):
        with pytest.raises(UserError, match=f"a run of {length} pixels at {start} leaves the 7"):
            fill_runs([(start, length)], size=(7, 3))


def test_faults_of_masks_are_named_by_row(raw, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    with raw[0].open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    for path in raw[0].parent.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "eye01_2.png").unlink()
    save(folder, "eye02_1.png", np.zeros((3, 5), np.uint8))
    table = write_table(folder, rows)
    spec = csv_spec("spots", classes=CLASSES)
    with pytest.raises(UserError, match=r"mask file is missing \(1\): row 3 .*eye01_2\.png"):
        prepare(spec, table, tmp_path / "data", size=SIZE)
    found = " ".join(check(spec, table, processes=1).problems)
    assert "eye01_2.png: file is missing" in found
    assert "eye02_1.png: 5 x 3 pixels" in found
    left = prepare(spec, table, tmp_path / "data", size=SIZE, on_bad="quarantine")
    assert [each["id"] for each in left.manifest["quarantined"]] == ["eye01.png", "eye02.png"]

    rows[3] = ("eye03.png", "eye03_1.jpg", "val")
    with pytest.raises(UserError, match=r"path is not a mask file name, expected \.png"):
        prepare(spec, write_table(folder, rows), tmp_path / "data", size=SIZE)
    rows[3] = ("eye03.png", "../eye03_1.png", "val")
    with pytest.raises(UserError, match=r"path has '\.\.'"):
        prepare(spec, write_table(folder, rows), tmp_path / "data", size=SIZE)
    both = write_table(folder, [("eye03.png", "", "1")], "path,mask,label")
    with pytest.raises(UserError, match="'label' and 'mask'; expected only one"):
        spec.read(both)
    with pytest.raises(UserError, match="no row names a mask"):
        spec.read(write_table(folder, [("eye03.png", "", "val")]))


def test_without_names_of_classes_everything_but_zero_is_foreground(tmp_path):
    save(tmp_path, "eye.png", np.zeros((5, 7, 3), np.uint8))
    found = csv_spec("spots").read(write_table(tmp_path, [("eye.png", "m.png", "val")]))
    assert found.classes == ("background", "foreground")
    assert suitable(found.label, found.classes).name == "segmentation"


@pytest.fixture(scope="module")
def lesions(tmp_path_factory):
    spec = dataclasses.replace(
        DATASETS["fundus_lesions"], draw=functools.partial(fundus_lesions.draw, count=41)
    )
    return prepare(spec, None, tmp_path_factory.mktemp("lesions"), size=64)


def test_drawn_lesions_cannot_be_told_by_the_brightness_of_a_channel(lesions):
    assert lesions.info.synthetic
    assert lesions.info.classes == ("background", "lesion")
    rows = [lesions.split(split)[i] for split in SPLITS for i in range(lesions.info.counts[split])]
    images, masks = (np.stack(part) for part in zip(*rows, strict=True))
    share = (masks == 1).mean(axis=(1, 2))
    assert 0 < (share == 0).mean() < 0.4
    assert 0.01 < share[share > 0].mean() < 0.2
    for channel in np.moveaxis(images, -1, 0):
        for threshold in range(0, 256, 3):
            for chosen in (channel >= threshold, channel < threshold):
                overlap = (chosen & (masks == 1)).sum()
                assert 2 * overlap / (chosen.sum() + (masks == 1).sum()) < 0.4


PLAIN = AugmentConfig(
    center_crop=1.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_vertical=0.0,
    flip_horizontal=0.0, jitter_probability=0.0, rotation_probability=0.0,
)  # fmt: skip
MOVES = {
    "crop and flips": {"crop_scale": (0.4, 0.9), "flip_vertical": 0.5, "flip_horizontal": 0.5},
    "rotation": {"rotation_probability": 1.0, "rotation_degrees": 30.0},
    "affine": {
        "affine_probability": 1.0, "affine_degrees": 20.0, "affine_translate": (0.2, 0.1),
        "affine_scale": (0.7, 1.2), "affine_shear": 10.0,
    },
    "perspective": {"perspective_probability": 1.0, "perspective_distortion": 0.4},
    "all": {
        "crop_scale": (0.5, 1.0), "flip_vertical": 0.5, "rotation_probability": 0.7,
        "rotation_degrees": 20.0, "affine_probability": 0.5, "affine_translate": (0.1, 0.1),
        "perspective_probability": 0.5, "perspective_distortion": 0.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_map_moves_with_its_image_and_outside_is_ignored(name):
    """An image that shows its own map still shows it afterwards, but for the edges."""
    config, side, size = dataclasses.replace(PLAIN, **MOVES[name]), 61, 53
    rng = np.random.default_rng(11)
    coarse = rng.integers(0, 2, (7, 5, 5)).astype(np.uint8)
    maps = resized_maps(coarse, side, side)
    # White where the class is 1, grey elsewhere, so that what was black outside is known.
    images = np.repeat(np.where(maps == 1, 255, 128).astype(np.uint8)[..., None], 3, axis=-1)

    def move(images, maps):
        keys = jax.random.split(jax.random.key(5), len(images))
        drawn = draw_augmentation(keys, config, side, side, 3, size)
        moved = apply_augmentation(unit(images), drawn, config, size, (0.0,) * 3, (1.0,) * 3)
        return moved[..., 0], move_maps(maps, drawn, config, size)

    moved, found = map(np.asarray, jax.jit(move)(images, jnp.asarray(maps)))
    assert set(np.unique(found)) <= {0, 1, IGNORE}
    for value, grey in ((0, 128 / 255), (1, 1.0), (IGNORE, 0.0)):
        if (found == value).any():
            near = np.abs(moved[found == value] - grey) < 0.2
            assert near.mean() > 0.85, value
    outside = (found == IGNORE).mean()
    assert (outside > 0) == (name != "crop and flips")
    assert (found == 1).any()


def test_labels_that_are_no_maps_are_left_alone_and_their_images_as_before():
    config = dataclasses.replace(PLAIN, **MOVES["all"], erase_probability=0.5)
    pixels = {"image_size": 11, "mean": (0.4,) * 3, "std": (0.2,) * 3, "dtype": jnp.float32}
    keys = jax.random.split(jax.random.key(1), 3)
    rng = np.random.default_rng(2)
    batch = {"inputs": rng.integers(0, 255, (3, 13, 13, 3), np.uint8), "labels": np.arange(3)}
    same = augment.batch_augmentation(Label.INDEX, config, **pixels)(keys, batch)
    expected = augment.augment(keys, batch["inputs"], config, **pixels)
    np.testing.assert_array_equal(same["inputs"], expected)
    assert same["labels"] is batch["labels"]
    maps = rng.integers(0, 3, (3, 13, 13), np.uint8)
    moved = augment.batch_augmentation(Label.MAP, config, **pixels)(keys, batch | {"labels": maps})
    np.testing.assert_array_equal(moved["inputs"], expected)
    assert (moved["labels"].shape, moved["labels"].dtype) == ((3, 11, 11), np.uint8)


def test_a_centre_crop_is_refused_for_masks():
    cropped = dataclasses.replace(PLAIN, center_crop=0.875)
    augment.check_label(cropped, Label.INDEX)
    with pytest.raises(UsageError, match=r"center_crop=0\.875.*expected 1\.0"):
        augment.batch_augmentation(Label.MAP, cropped, 11, (0.0,), (1.0,), jnp.float32)


def test_outlines_run_along_the_inside_of_each_mask():
    true, predicted = np.zeros((2, 11, 13, 2), bool)
    true[2:7, 3:9, 0], true[3, 4] = True, False
    predicted[5:11, 5:13, 1] = True
    edge = outline(true)
    assert edge[2, 3:9].all()
    assert not edge[3, 4]
    assert edge[4, 4]  # beside an ignored pixel
    assert not edge[5, 6]
    assert not edge[~true.any(axis=-1)].any()
    true[2:7, 5:9, 1] = True
    assert outline(true)[4].nonzero()[0].tolist() == [3, 4, 5, 8]  # beside a hole, or in both
    picture = np.asarray(outlined(np.full((11, 13, 1), 9, np.uint8), true, predicted))
    times = picture.shape[0] // 11
    assert picture.shape == (11 * times, 13 * times, 3)
    assert min(picture.shape[:2]) >= 192
    shown = [(picture == colour).all(axis=-1) for colour in (TRUE_COLOUR, PREDICTED_COLOUR)]
    for found, mask in zip(shown, (true, predicted), strict=True):
        assert found.any()
        large = mask.any(axis=-1).repeat(times, axis=0).repeat(times, axis=1)
        assert not found[~large].any()


def test_a_set_that_did_not_name_its_labels_is_still_what_would_be_prepared(tmp_path):
    """Format 2."""
    spec, raw = DATASETS["aptos2019"], write_aptos(tmp_path / "raw")
    new = prepare(spec, raw, tmp_path / "data", size=5)
    path = new.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("label") == "index"
    del manifest["sha256"]
    manifest["format"] = 2
    path.write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))
    old = prepare(spec, raw, tmp_path / "data", size=5)
    assert old.info == dataclasses.replace(new.info, manifest_sha256=old.info.manifest_sha256)
