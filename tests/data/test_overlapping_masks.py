"""Masks that overlap, masks resized by area, and what a prepared set says of the areas of masks."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from fmi_jax.augment.maps import move_maps
from fmi_jax.augment.pipeline import draw_augmentation
from fmi_jax.data.card.page import write_card
from fmi_jax.data.labels import IGNORE, MOST_LAYERS, Label
from fmi_jax.data.masks import are_counted, pixel_counts
from fmi_jax.data.prepared import manifest_sha256, open_folder
from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.masks import resize_mask
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.remarks import remarks_on
from fmi_jax.errors import UsageError, UserError
from fmi_jax.settings import AugmentConfig

CLASSES = ("lung", "heart", "clavicle")
SIZE, COUNT = 13, 31


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A table, and the bits of the masks of each image; lungs have two files each.

    Every fifth image has no mask; a clavicle is a single pixel that no smaller image shows.
    """
    folder, bits = tmp_path_factory.mktemp("raw"), {}
    lines = ["path,mask_lung,view,mask_heart,mask_clavicle"]
    for i in range(COUNT):
        rng = np.random.default_rng(i)
        height, width = rng.integers(30, 43, size=2)
        name = f"film{i:02}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
        masks = {n: rng.random((height, width)) < 0.4 for n in ("left", "right", "heart")}
        masks["clavicle"] = np.zeros((height, width), bool)
        masks["clavicle"][0, 0] = True
        files = {n: f"{name[:-4]}_{n}.png" for n in masks}
        for n, mask in masks.items():
            Image.fromarray(mask).save(folder / files[n])
        fields = [f"{files['left']}|{files['right']}", "pa", files["heart"], files["clavicle"]]
        bits[name] = (masks["left"] | masks["right"]) + 2 * masks["heart"] + 4 * masks["clavicle"]
        if i % 5 == 0:
            fields, bits[name] = ["", "pa", "", ""], np.zeros((height, width), int)
        lines.append(",".join([name, *fields]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv", bits


@pytest.fixture(scope="module")
def dataset(raw, tmp_path_factory):
    return prepare(csv_spec("films"), raw[0], tmp_path_factory.mktemp("data"), size=SIZE)


def test_a_pixel_keeps_all_of_its_classes_and_empty_masks_are_counted(raw, dataset) -> None:
    info = dataset.info
    assert (info.label, info.task) == (Label.LAYERS, "multilabel_segmentation")
    assert info.classes == CLASSES
    assert dataset.columns("train") == {"view": ["pa"] * info.counts["train"]}
    empty = 0
    for split in info.counts:
        counts, present = pixel_counts(dataset, split), dataset.labels(split)
        for row, name in enumerate(dataset.ids(split)):
            mask, whole = dataset.split(split)[row][1], raw[1][name]
            places = [(np.arange(SIZE) * 2 + 1) * side // (2 * SIZE) for side in whole.shape]
            np.testing.assert_array_equal(mask, whole[np.ix_(*places)])
            assert [((mask >> c) & 1).sum() for c in range(3)] == counts[row].tolist()
            np.testing.assert_array_equal(present[row], [(whole & 2**c).any() for c in range(3)])
            empty += not whole.any()
    assert empty == sum(dataset.manifest["empty_masks"].values()) == 7
    remarks = remarks_on(dataset)
    assert "7 of 31 images (23%) are without any finding: their masks are empty." in remarks
    assert (
        "Too small for 13 pixels, and in the mask of fewer images once prepared: clavicle (24)."
    ) in remarks


def test_classes_are_chosen_and_faults_are_named(raw, tmp_path: Path) -> None:
    table = raw[0]
    chosen = csv_spec("films", classes=("heart", "lung")).read(table)
    assert (chosen.classes, chosen.examples[1].layers) == (("heart", "lung"), (0, 1, 1))
    assert chosen.examples[1].label == (1.0, 1.0)
    assert set(chosen.examples[0].columns) == {"view", "mask_clavicle"}
    assert not check(csv_spec("films"), table, processes=1).problems
    with pytest.raises(UserError, match="no column 'mask_liver'; its columns of masks are 'mask_l"):
        csv_spec("films", classes=("heart", "liver")).read(table)
    for header, message in (
        ("path,mask_lung", "expected two or more classes, found only 'lung'"),
        (f"path,{','.join(f'mask_{i}' for i in range(8))}", f"have at most {MOST_LAYERS}"),
    ):
        other = tmp_path / "table.csv"
        other.write_text(f"{header}\n{','.join(['a.png'] * len(header.split(',')))}\n")
        with pytest.raises(UserError, match=message):
            csv_spec("films").read(other)


def test_bits_and_scores_are_each_others_inverse_for_numpy_and_jax() -> None:
    maps = np.arange(2**MOST_LAYERS, dtype=np.uint8)
    for form, k in ((Label.LAYERS, MOST_LAYERS), (Label.MAP, 2**MOST_LAYERS)):
        for xp in (np, jnp):
            members = form.pixels_of(xp.asarray(maps)[:, None], np.arange(k))
            np.testing.assert_array_equal(form.map_of(members), maps)
            assert not form.pixels_of(xp.asarray([IGNORE], xp.uint8)[:, None], np.arange(k)).any()
    scores = jnp.asarray([[0.5, 0.51, 0.9]])
    assert jax.jit(Label.LAYERS.map_of)(scores).tolist() == [6]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 19), st.integers(1, 4))
def test_by_area_a_pixel_has_what_covers_most_of_it(seed, size, k) -> None:
    """Beside the areas of a picture in which every pixel is divided into `size` x `size`."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 17, size=2)
    mask = rng.integers(0, k, (height, width)).astype(np.uint8)
    fine = mask.repeat(size, axis=0).repeat(size, axis=1)
    blocks = fine.reshape(size, height, size, width).swapaxes(1, 2).reshape(size, size, -1)
    areas = np.stack([(blocks == c).sum(axis=-1) for c in range(k)], axis=-1)
    highest = k - 1 - areas[..., ::-1].argmax(axis=-1)
    found = resize_mask(mask, size=size, num_classes=k, how="area")
    np.testing.assert_array_equal(found, highest)
    layers = rng.integers(0, 2**k, (height, width)).astype(np.uint8)
    fine = layers.repeat(size, axis=0).repeat(size, axis=1)
    blocks = fine.reshape(size, height, size, width).swapaxes(1, 2).reshape(size, size, -1)
    half = [2 * ((blocks >> c) & 1).sum(axis=-1) >= height * width for c in range(k)]
    expected = sum(bit.astype(int) << c for c, bit in enumerate(half))
    found = resize_mask(layers, size=size, label=Label.LAYERS, num_classes=k, how="area")
    np.testing.assert_array_equal(found, expected)


def test_how_masks_were_resized_is_recorded(raw, tmp_path: Path) -> None:
    spec = csv_spec("films")
    area = prepare(spec, raw[0], tmp_path, size=5, mask_resize="area")
    assert area.manifest["mask_resize"] == "area"
    row, name = 1, area.ids("test")[1]
    expected = resize_mask(
        raw[1][name].astype(np.uint8), size=5, label=Label.LAYERS, num_classes=3, how="area"
    )
    np.testing.assert_array_equal(area.split("test")[row][1], expected)
    with pytest.raises(UserError, match="differs in: mask_resize"):
        prepare(spec, raw[0], tmp_path, size=5)
    with pytest.raises(UsageError, match=r"unknown way to resize masks 'areas'.*'area'"):
        prepare(spec, raw[0], tmp_path, size=5, mask_resize="areas")


def test_an_older_set_is_read_and_says_what_it_does_not_know(raw, tmp_path: Path) -> None:
    dataset = prepare(csv_spec("films"), raw[0], tmp_path / "data", size=SIZE)
    path = dataset.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("sha256", "empty_masks", "mask_resize"):
        del manifest[name]
    manifest["format"] = 4
    path.write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))
    old = open_folder(dataset.folder)
    assert not are_counted(old)
    assert old.info.classes == CLASSES
    assert not any("Too small" in remark for remark in remarks_on(old))
    write_card(old)
    with pytest.raises(UserError, match=r"prepare csv .*--name films .*--size 13 .*--overwrite"):
        pixel_counts(old, "train")
    assert prepare(csv_spec("films"), raw[0], tmp_path / "data", size=SIZE).info == old.info


def test_the_card_shows_masks_and_their_areas(dataset) -> None:
    page = write_card(dataset).read_text()
    assert "Areas of the masks" in page
    assert "7 of 31 masks are empty" in page
    counts = np.concatenate([pixel_counts(dataset, split) for split in dataset.info.counts])
    share = counts[counts[:, 1] > 0, 1] / SIZE**2
    assert f"<td>{len(share)}</td><td>{100 * share.min():.2g}%</td>" in page
    assert all(f">{name}</h3>" in page for name in CLASSES)
    assert "multi-label segmentation (3 classes)" in page


def test_every_class_of_a_pixel_moves_with_the_image() -> None:
    """As if it were alone."""
    config = AugmentConfig(
        center_crop=1.0, crop_scale=(0.5, 0.9), flip_vertical=0.5, rotation_probability=1.0,
        perspective_probability=1.0, affine_probability=1.0, affine_degrees=10.0,
    )  # fmt: skip
    maps = np.random.default_rng(3).integers(0, 2**MOST_LAYERS, (3, 17, 17)).astype(np.uint8)

    @jax.jit
    def moved(maps: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(5), len(maps))
        drawn = draw_augmentation(keys, config, 17, 17, 3, 13)
        return move_maps(maps, drawn, config, 13)

    whole = np.asarray(moved(maps))
    bits = [np.asarray(moved((maps >> c) & 1)) for c in range(MOST_LAYERS)]
    together = sum(bit.astype(int) << c for c, bit in enumerate(bits))
    np.testing.assert_array_equal(whole, np.where(bits[0] == IGNORE, IGNORE, together))
    assert (whole == IGNORE).any()
    assert len(np.unique(whole)) > 50


@pytest.mark.parametrize("classes", [("heart", "lung"), ("background", "heart", "lung")])
def test_patients_and_copies_in_two_splits_are_remarks(classes, tmp_path: Path) -> None:
    """As for classes of images."""
    columns = ["mask"] if classes[0] == "background" else [f"mask_{name}" for name in classes]
    lines = [",".join(["path", "split", "group", *columns])]
    for i in range(9):
        pixels = np.random.default_rng(min(i, 7)).integers(0, 255, (7, 7, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        Image.fromarray(np.full((7, 7), i % 2, np.uint8)).save(tmp_path / f"m{i}.png")
        split = ("train", "val", "test")[i // 3]
        files = [f"m{i}.png"] * len(columns)
        lines.append(",".join([f"{i}.png", split, f"patient {i % 5}", *files]))
    lines.append(",".join(["7.png", "train", "patient 9", *["m7.png"] * len(columns), "x"]))
    lines[0], lines[-1] = f"{lines[0]},id", lines[-1].replace("x", "again")
    lines[1:-1] = [f"{line},{i}" for i, line in enumerate(lines[1:-1])]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    spec = csv_spec("leaky", classes=classes)
    dataset = prepare(spec, tmp_path / "table.csv", tmp_path / "data", size=5)
    remarks = remarks_on(dataset)
    assert (
        "2 of 3 test images (67%) are of a patient, lesion or study that is also in train: results"
        " on test will look too good."
    ) in remarks
    assert "1 image is in more than one split, the same to the pixel." in remarks
    page = write_card(dataset).read_text()
    assert all(remark in page for remark in remarks)
