"""The card of a prepared data set: what it says, that it is right, and that it is safe to open."""

import dataclasses
import re

import numpy as np
import pytest
from html_page import Page
from PIL import Image
from raw_sets import write_csv

from fmi_jax.data.card.page import write_card
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset, open_folder
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.remarks import Duplicates, Groups, find_groups, remarks, remarks_on
from fmi_jax.tasks.registry import TASKS

TIMES = "\N{MULTIPLICATION SIGN}"
HOSTILE = "<script>alert(1)</script>"
CLASSES = ("$a$ <b>bold</b>", "c", '"x" onerror="y')


def page_of(dataset):
    text = (dataset.folder / "card.html").read_text()
    page = Page(text.replace("</t", " </t"))  # a blank between the cells of a table
    return text, page, " ".join(page.text.split())


def samples_of(text):
    """Ids of the images that the page shows, by class."""
    sections = re.findall(r"<h3>([^<]+)</h3>\s*<div class=\"grid\">(.*?)</div>", text, re.DOTALL)
    return {name: re.findall(r'title="([^"]+)"', images) for name, images in sections}


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A data set with every fault that a card is there to show."""
    folder = tmp_path_factory.mktemp("raw")
    lines = [f"i{i}.png,{i % 2},train,p{i // 2},n{i}" for i in range(24)]
    lines += [f"v{i}.png,0,val,q{i},v{i}" for i in range(11)]
    lines += [f"t{i}.png,{i % 3},test,p{i},t{i}" for i in range(13)]  # patients p0 to p11 again
    lines += [f"bad.png,1,test,r,{HOSTILE}", "same.png,2,train,p1,same", "again.png,1,train,p1,ag"]
    table = write_csv(folder, "path,label,split,group,id", lines)
    text = table.read_text()
    for c, name in enumerate(CLASSES):
        quoted = '"' + name.replace('"', '""') + '"'
        text = re.sub(rf"\.png,{c},", lambda _, q=quoted: f".png,{q},", text)
    table.write_text(text)
    (folder / "bad.png").write_text("not an image")
    for copy in ("same.png", "again.png"):  # one image twice in train and once in test
        (folder / copy).write_bytes((folder / "t3.png").read_bytes())
    (folder / "i7.png").write_bytes((folder / "i5.png").read_bytes())
    Image.new("RGB", (3, 5), "red").save(folder / "v0.png")
    spec = csv_spec("messy", classes=CLASSES)
    dataset = prepare(
        spec, table, tmp_path_factory.mktemp("data"), size=13, on_bad="quarantine", processes=1
    )
    assert write_card(dataset) == dataset.folder / "card.html"
    return dataset


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """Fourteen labels on grey images, the last nowhere; said to be drawn, and not the whole."""
    folder = tmp_path_factory.mktemp("raw")
    names = tuple(f"finding {c}" for c in range(14))
    rng = np.random.default_rng(0)
    lines = []
    for i in range(37):
        split = "train" if i < 23 else "val" if i < 30 else "test"
        present = (rng.random(14) < 0.3) & (np.arange(14) < 13)
        if i % 9 == 0:
            present[:] = False
        lines.append(f"x{i}.png,{split}," + ",".join(map(str, present.astype(int))))
    table = write_csv(folder, "path,split," + ",".join(names), lines)
    spec = csv_spec("chest", label_columns=names, channels=1)
    dataset = prepare(spec, table, tmp_path_factory.mktemp("data"), size=17, processes=1)
    info = dataclasses.replace(dataset.info, synthetic=True, limit=1234)
    write_card(dataclasses.replace(dataset, info=info))
    return dataset


def test_card_is_self_contained_and_runs_nothing(messy):
    text, page, _ = page_of(messy)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.handlers == []
    for name in (*CLASSES, HOSTILE):
        assert name in page.text
    assert len(page.loads) > 10
    assert all(link.startswith("data:image/") for link in page.loads)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_card_says_what_is_in_the_data_and_what_to_beware_of(messy):
    info, (_, _, words) = messy.info, page_of(messy)
    for part in (
        f"50 colour images of 13 {TIMES} 13 pixels, multi-class (3 classes), split 'official':"
        " 26 train, 11 val, 13 test",
        info.split_sha256, info.manifest_sha256,
        "12 of 13 test images (92%) are of a patient, lesion or study that is also in train",
        "1 image is in more than one split",
        "1 duplicate is labelled in more than one way.",
        "1 image is left out as unusable (2.0%).",
        "Every image in val is of: $a$ <b>bold</b>.",
        'Fewer than 10 images in test: $a$ <b>bold</b> (5), c (4), "x" onerror="y (4).',
        "In train, c is 13 times as frequent as \"x\" onerror=\"y.",
        "12 in both train and test, with 12 of the test images.",
        "1 between splits, 1 within one. The labels disagree for 1 of them.",
        "train: same, train: ag, test: t3", "train: n5, train: n7",
        f"test {HOSTILE} not an image",
        f"smallest 3 {TIMES} 5",
        "c 13 50% 0 0% 4 31%",
    ):  # fmt: skip
        assert part in words, part
    assert "Synthetic" not in words
    assert "Not the whole" not in words


def test_groups_are_counted_where_they_leak(messy):
    groups = find_groups(messy)
    assert groups is not None
    assert groups.counts == {"train": 12, "val": 11, "test": 13}
    assert groups.shared == {("train", "val"): 0, ("train", "test"): 12, ("val", "test"): 0}
    assert groups.leaked == groups.shared
    assert set(groups.names) == {f"p{i}" for i in range(12)}


def test_samples_are_training_images_of_their_class(messy):
    shown = samples_of(page_of(messy)[0])
    label = dict(zip(messy.ids("train"), messy.labels("train").tolist(), strict=True))
    assert [len(ids) for ids in shown.values()] == [7, 7, 1]
    for c, ids in enumerate(shown.values()):
        assert len(set(ids)) == len(ids)
        assert {label[id_] for id_ in ids} == {c}


def test_picture_shows_and_the_folder_is_still_whole(messy):
    before = {name: (messy.folder / name).read_bytes() for name in ("card.html", "card.png")}
    with Image.open(messy.folder / "card.png") as picture:
        assert min(picture.size) > 1000
        assert len(picture.convert("L").getcolors()) > 50
    again = open_folder(messy.folder)
    write_card(again)
    assert {name: (messy.folder / name).read_bytes() for name in before} == before
    assert not list(messy.folder.glob(".*.tmp"))


def test_multilabel_card_shows_prevalence_and_every_class(chest):
    text, page, words = page_of(chest)
    labels = chest.labels("train")
    shown = samples_of(text)
    assert list(shown) == list(chest.info.classes)
    rows = {id_: labels[row] for row, id_ in enumerate(chest.ids("train"))}
    for c, ids in enumerate(shown.values()):
        assert len(ids) == min(4, labels[:, c].sum())
        assert all(rows[id_][c] for id_ in ids)
    none = sum(int((~chest.labels(split).any(axis=1)).sum()) for split in chest.info.counts)
    assert f"{none} of 37 images ({none / 37:.0%}) are without any of the classes." in words
    assert f"finding 0 {labels[:, 0].sum():g} {labels[:, 0].mean():.0%}" in words
    assert "No image in train of: finding 13." in words
    assert "No image in train." in words
    assert "37 grey images" in words
    assert "The data do not say which images belong together" in words
    assert page.tags.count("img") == 2 + sum(map(len, shown.values()))


def test_banners_say_what_must_not_be_overlooked(chest):
    words = page_of(chest)[2]
    assert "Synthetic data: drawn by a program." in words
    assert "Not the whole data set: at most 1,234 images of every split." in words


def test_many_classes_and_one_size(tmp_path):
    classes = [f"c{c:02}" for c in range(23)]
    lines = [f"{split}{c}.png,{name},{split}" for split in ("train", "val", "test")
             for c, name in enumerate(classes)]  # fmt: skip
    table = write_csv(tmp_path, "path,label,split", lines)
    for i, line in enumerate(lines):
        Image.new("RGB", (11, 7), (i, 3 * i, 255 - i)).save(tmp_path / line.split(",")[0])
    dataset = prepare(csv_spec("many"), table, tmp_path / "data", size=7, processes=1)
    write_card(dataset)
    text, _, words = page_of(dataset)
    assert len(samples_of(text)) == 16
    assert "The 16 most frequent of 23 classes." in words
    assert all(name in words for name in classes)
    assert "Fewer than 10 images in test: c00 (1), c01 (1)" in words
    assert "and 15 more." in words
    assert f"All are 11 {TIMES} 7 pixels." in words
    assert "100% are more than a tenth longer one way" in words


def info_of(counts, class_counts, task="multiclass"):
    return DatasetInfo(
        name="made_up", label=TASKS[task].label, task=task, classes=("a", "b"), channels=3, size=7,
        mean=(0.0,), std=(1.0,), metric="accuracy", split="official", limit=0, split_sha256="",
        counts=counts, class_counts=class_counts, class_groups={}, synthetic=False,
        manifest_sha256="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("test_counts", "remark"),
    [
        ((500, 500), None),
        ((470, 530), None),  # two standard errors: chance
        ((350, 650), "More or less frequent in test than in train, beyond chance: a, b."),
        ((5, 995), "Fewer than 10 images in test: a (5)."),
    ],
)
def test_remarks_on_the_balance_of_the_classes(tmp_path, test_counts, remark):
    info = info_of(
        {"train": 2000, "val": 200, "test": 1000},
        {"train": (1000, 1000), "val": (100, 100), "test": test_counts},
    )
    dataset = PreparedDataset(tmp_path, info, {"quarantined": []})
    found = remarks(dataset, Duplicates([], [], 0), None)
    assert found == [] if remark is None else remark in found


def test_that_every_mask_has_background_is_no_remark(tmp_path, monkeypatch):
    monkeypatch.setattr(
        PreparedDataset, "labels", lambda self, split: np.ones((self.info.counts[split], 2))
    )
    counts = {"train": (200, 90), "val": (40, 40), "test": (40, 18)}
    info = info_of({"train": 200, "val": 40, "test": 40}, counts)
    info = dataclasses.replace(info, label=Label.MAP)
    dataset = PreparedDataset(tmp_path, info, {"quarantined": []})
    found = remarks(dataset, Duplicates([], [], 0), None)
    assert [text for text in found if "Every image" in text] == [
        f"Every image in val is of: {info.classes[1]}."
    ]


@pytest.mark.parametrize(("count", "named"), [(0, False), (19, True), (20, False)])
def test_few_patients_in_test_are_a_remark(tmp_path, count, named):
    whole = {"train": (1000, 1000), "val": (100, 100), "test": (500, 500)}
    info = info_of({split: sum(counts) for split, counts in whole.items()}, whole)
    dataset = PreparedDataset(tmp_path, info, {"quarantined": []})
    groups = Groups(counts={"train": 50, "val": 3, "test": count}, shared={}, leaked={}, names=[])
    found = remarks(dataset, Duplicates([], [], 0), groups)
    assert [text.startswith(f"The images in test are of {count} ") for text in found] == (
        [True] if named else []
    )


def test_remarks_on_a_subset_leave_out_what_is_not_in_it(messy):
    kept = [i for i, id_ in enumerate(messy.ids("train")) if id_ != "same"][:9]
    part = dataclasses.replace(messy, train_rows=tuple(kept))
    assert not [text for text in remarks_on(part) if "same to the pixel" in text]
    assert [text for text in remarks_on(messy) if "same to the pixel" in text]


def test_the_card_says_how_each_class_is_divided(messy):
    assert "Division of each class among the splits" in page_of(messy)[2]
