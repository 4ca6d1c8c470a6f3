import argparse
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from raw_sets import locate_images

from fmi_jax.data.masks import masked_rows, masks_of
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.preparing import commands
from fmi_jax.data.preparing.images import load_image
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.chestxray14 import BENCHMARK_LISTS, CHESTXRAY14, CLASSES, read_boxes
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UsageError, UserError
from fmi_jax.tasks.registry import suitable

TABLE = "Data_Entry_2017.csv"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "chestxray14"
    CHESTXRAY14.draw(folder)
    return folder


@pytest.fixture
def raw(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "chestxray14")


def names(folder, table):
    return (folder / table).read_text().split()


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def write_benchmark_lists(raw):
    """As the benchmark has them: name and fourteen labels, here in an order of their own."""
    train_val = names(raw, "train_val_list.txt")[::-1]
    lists = {"train": train_val[7:], "val": train_val[:7], "test": names(raw, "test_list.txt")}
    for split, images in lists.items():
        lines = (f"{image} {' '.join('0' * 14)}" for image in images)
        (raw / BENCHMARK_LISTS[split]).write_text("\n".join(lines) + "\n")
    return {split: sorted(images) for split, images in lists.items()}


def test_findings_are_labels_in_the_order_of_the_study(raw):
    lines = (raw / TABLE).read_text().splitlines()
    fields = [line.split(",") for line in lines]
    fields[1][1] = "Hernia|Atelectasis"
    fields[2][1] = "No Finding"
    fields[3][1] = "Pleural_Thickening"
    (raw / TABLE).write_text("\n".join(map(",".join, fields)) + "\n")
    read = CHESTXRAY14.read(raw)
    assert (suitable(read.label, read.classes).name, read.classes) == ("multilabel", CLASSES)
    labels = np.array([example.label for example in read.examples])
    assert labels.shape == (56, 14)
    assert [np.flatnonzero(row).tolist() for row in labels[:3]] == [[0, 13], [], [12]]
    assert (CLASSES[0], CLASSES[2], CLASSES[13]) == ("Atelectasis", "Effusion", "Hernia")


def test_images_and_table_are_found_as_either_release_lays_them_out(raw):
    first = {path.name: path for path in locate_images(CHESTXRAY14.read(raw))}
    assert {path.parent.parent.name for path in first.values()} == {"images_001", "images_002"}
    (raw / "images").mkdir()
    for path in first.values():
        path.rename(raw / "images" / path.name)
    (raw / TABLE).rename(raw / "Data_Entry_2017_v2020.csv")
    read = CHESTXRAY14.read(raw)
    assert read.table.name == "Data_Entry_2017_v2020.csv"
    assert all(path.is_file() for path in locate_images(read))


def test_images_are_colour_as_in_the_benchmark_also_those_with_an_alpha_channel(drawn):
    paths = locate_images(CHESTXRAY14.read(drawn))
    modes = {Image.open(path).mode: path for path in paths}
    assert modes.keys() == {"L", "RGBA"}
    image = load_image(modes["RGBA"], channels=3, size=61)
    grey = Image.open(modes["RGBA"]).getchannel(0).resize((61, 61), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image, np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_official_split_is_the_nih_s_test_list_and_an_eighth_of_the_other_patients(drawn):
    examples = CHESTXRAY14.read(drawn).examples
    name, rows = assign(CHESTXRAY14, "", examples)
    assert name == "official"
    assert [examples[i].id for i in rows["test"]] == names(drawn, "test_list.txt")
    patients = {name: {examples[i].group for i in rows[name]} for name in SPLITS}
    assert not patients["train"] & patients["val"]
    others = len(patients["train"] | patients["val"])
    assert len(patients["val"]) == others // 8
    assert sorted(rows["train"] + rows["val"] + rows["test"]) == list(range(56))


def test_official_split_stays_the_same_beside_the_benchmark_s_lists(raw):
    before = assign(CHESTXRAY14, "official", CHESTXRAY14.read(raw).examples)
    write_benchmark_lists(raw)
    assert assign(CHESTXRAY14, "official", CHESTXRAY14.read(raw).examples) == before


def test_upstream_split_is_the_benchmark_s_lists(raw):
    with pytest.raises(UsageError, match=r"'upstream' needs Xray14_train_official\.txt"):
        assign(CHESTXRAY14, "upstream", CHESTXRAY14.read(raw).examples)
    lists = write_benchmark_lists(raw)
    examples = CHESTXRAY14.read(raw).examples
    _, rows = assign(CHESTXRAY14, "upstream", examples)
    assert {name: [examples[i].id for i in rows[name]] for name in SPLITS} == lists
    for name in ("train_val_list.txt", "test_list.txt"):
        (raw / name).unlink()
    assert CHESTXRAY14.read(raw).examples == examples


def test_without_lists_patients_are_grouped(raw):
    for name in ("train_val_list.txt", "test_list.txt"):
        (raw / name).unlink()
    examples = CHESTXRAY14.read(raw).examples
    assert assign(CHESTXRAY14, "", examples)[0] == "grouped"
    with pytest.raises(UsageError, match=r"every row in one of train_val_list\.txt, test_list"):
        assign(CHESTXRAY14, "official", examples)


def test_lists_that_disagree_are_refused(raw):
    lists = write_benchmark_lists(raw)
    text = (raw / BENCHMARK_LISTS["test"]).read_text().splitlines(keepends=True)
    (raw / BENCHMARK_LISTS["test"]).write_text("".join(text[1:]))
    match = rf"test_list\.txt and Xray14_test_official\.txt disagree \(1\): .*{lists['test'][0]}"
    with pytest.raises(UserError, match=match):
        CHESTXRAY14.read(raw)


def test_a_row_in_no_list_is_named(raw):
    image = names(raw, "test_list.txt")[2]
    replace(raw / "test_list.txt", image + "\n", "")
    with pytest.raises(UsageError, match=rf"1 are in none: row \d+ \('{image}'\)"):
        assign(CHESTXRAY14, "", CHESTXRAY14.read(raw).examples)


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ("Mass|Tumour", r"outside the classes.*: row 2 \('.*_000\.png'\): 'Tumour'"),
        ("No Finding|Mass", r"outside the classes.*: 'No Finding'"),
        ("", r"Finding Labels is empty, expected 'No Finding'.* \(1\): row 2"),
    ],
)
def test_findings_that_cannot_be_are_named(raw, findings, message):
    lines = (raw / TABLE).read_text().splitlines()
    fields = lines[1].split(",")
    lines[1] = ",".join([fields[0], findings, *fields[2:]])
    (raw / TABLE).write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        CHESTXRAY14.read(raw)


def test_an_image_that_is_in_no_folder_is_missing_under_its_name(raw):
    read = CHESTXRAY14.read(raw)
    (raw / read.examples[9].path).unlink()
    paths = locate_images(CHESTXRAY14.read(raw))
    assert [path.name for path in paths if not path.is_file()] == [read.examples[9].id]


BOX_LIST = "BBox_List_2017.csv"
# The header as published, and a box in the coordinates of 1024 pixels.
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write_boxes(raw, *rows):
    (raw / BOX_LIST).write_text("\n".join([BOX_HEADER, *rows]) + "\n")


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_prepare_arguments(parser)
    commands.run_prepare(parser.parse_args(list(map(str, arguments))))


def test_boxes_become_masks_of_the_images_that_have_one(raw, tmp_path, capsys):
    first, second, *_ = names(raw, "test_list.txt")
    write_boxes(
        raw,
        f"{first},Infiltrate,256,512,512,128,,,",
        f"{first},Mass,0.0000000,0.0000000,103.9,1024,,,",
        f"{second},Effusion,960,900.5,200,300,,,",
    )
    run_command("chestxray14", "--source", raw, "--data-dir", tmp_path, "--size", 61, "--boxes")
    assert re.search(r"with boxes +0 +0 +2$", capsys.readouterr().out, re.MULTILINE)
    dataset = open_dataset(tmp_path, "chestxray14", 61)
    ids = dataset.ids("test")
    assert [ids[row] for row in masked_rows(dataset, "test")] == sorted([first, second])
    assert masked_rows(dataset, "train") == []
    masks = masks_of(dataset, "test", [ids.index(name) for name in (first, second)])
    y, x = (np.mgrid[:61, :61] + 0.5) * 1024 / 61
    inside = (x >= 256) & (x < 768) & (y >= 512) & (y < 640)
    np.testing.assert_array_equal(masks[0], inside | (x < 103.9))
    np.testing.assert_array_equal(masks[1], (x >= 960) & (y >= 900.5))
    # They are no facts about patients, and change neither labels nor splits.
    assert {*dataset.columns("test")} == {"age", "sex", "view"}
    with pytest.raises(UserError, match="overwrite"):
        prepare(CHESTXRAY14, raw, tmp_path, size=61)
    plain = prepare(CHESTXRAY14, raw, tmp_path / "plain", size=61)
    assert plain.info.split_sha256 == dataset.info.split_sha256
    assert masked_rows(plain, "test") == []


def test_boxes_that_cannot_be_are_named(raw):
    image = names(raw, "test_list.txt")[0]
    write_boxes(
        raw,
        "00000000_000.png,Mass,1,1,5,5,,,",
        f"{image},Tumour,1,1,5,5,,,",
        f"{image},Mass,1,1,0,5,,,",
        f"{image},Mass,1024,1,5,5,,,",
        f"{image},Mass,nan,1,5,5,,,",
        f"{image},Mass,,1,5,5,,,",
    )
    with pytest.raises(UserError) as error:
        read_boxes(raw)
    said = str(error.value)
    assert "image is not in Data_Entry_2017.csv (1): row 2" in said
    assert f"finding is outside the classes (1): row 3 ('{image}'): 'Tumour'" in said
    assert "not a box inside 1024 x 1024 pixels (4): row 4" in said
    (raw / BOX_LIST).unlink()
    with pytest.raises(UserError, match=r"BBox_List_2017\.csv is not a file"):
        read_boxes(raw)


def test_boxes_are_asked_of_the_set_that_has_them(tmp_path):
    with pytest.raises(UsageError, match="--boxes cannot be used with aptos2019; expected chestx"):
        run_command("aptos2019", "--source", tmp_path, "--boxes")


def test_the_drawn_boxes_are_around_what_is_drawn(drawn):
    boxed = [example for example in read_boxes(drawn).examples if example.boxes]
    assert len(boxed) > 5
    for example in boxed:
        assert example.split == "test"
        for box in example.boxes:
            assert example.label[CLASSES.index(box.name)] == 1
