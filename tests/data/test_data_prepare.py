import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow_datasets as tfds
from PIL import Image
from prepared_sets import contents, note_reads
from raw_sets import write_aptos, write_csv, write_image

from fmi_jax.data import registry
from fmi_jax.data.prepared import DatasetInfo, open_dataset, open_folder, open_or_draw
from fmi_jax.data.preparing import build
from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.images import load_image
from fmi_jax.data.preparing.prepare import prepare, prepare_sizes
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.drawn.fundus import draw
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.data.raw.splits import upstream
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError, UserError
from fmi_jax.tasks.registry import TASKS

APTOS = DATASETS["aptos2019"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_aptos(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    return prepare(APTOS, raw, tmp_path_factory.mktemp("data"), size=13)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that this process reads, as they are read."""
    return note_reads(monkeypatch)


def test_every_image_is_there_once_with_its_label_in_the_order_of_the_split(raw, prepared):
    rows = upstream(APTOS.read(raw).examples)
    assert prepared.folder.name == "13-upstream"
    assert prepared.info.counts == {name: len(rows[name]) for name in SPLITS}
    for name in SPLITS:
        split = prepared.split(name)
        assert prepared.ids(name) == [f"eye{i:03}" for i in rows[name]]
        np.testing.assert_array_equal(prepared.labels(name), [i % 5 for i in rows[name]])
        assert len(split) == len(rows[name])
        for (image, label), i in zip(
            (split[k] for k in range(len(split))), rows[name], strict=True
        ):
            expected = load_image(raw / "train_images" / f"eye{i:03}.png", 3, 13)
            np.testing.assert_array_equal(image, expected)
            assert (image.dtype, label.dtype, int(label)) == (np.uint8, np.int32, i % 5)
    np.testing.assert_array_equal(prepared.image("val", 2), prepared.split("val")[2][0])
    assert prepared.groups("test") is None
    raw_sizes = [Image.open(raw / "train_images" / f"{i}.png").size for i in prepared.ids("val")]
    assert prepared.sizes("val").tolist() == [list(size) for size in raw_sizes]
    with pytest.raises(UsageError, match="unknown split 'valid'"):
        prepared.split("valid")


def test_info_says_what_it_is(prepared):
    info = prepared.info
    assert (info.name, info.task, info.channels, info.size) == ("aptos2019", "multiclass", 3, 13)
    assert (info.mean, info.std) == ((0.415, 0.221, 0.073), (0.275, 0.150, 0.081))
    assert (info.metric, info.split, info.synthetic) == ("quadratic_kappa", "upstream", False)
    for name in SPLITS:
        counts = np.bincount(prepared.labels(name), minlength=5)
        np.testing.assert_array_equal(info.class_counts[name], counts)
    lines = [f"{name},{image_id}\n" for name in SPLITS for image_id in prepared.ids(name)]
    assert info.split_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert DatasetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_any_tfds_reader_can_read_it(prepared):
    builder = tfds.builder_from_directory(prepared.folder)
    assert builder.info.features["label"].names[4] == "Proliferative DR"
    for name in SPLITS:
        records = list(builder.as_data_source(split=name))
        assert [record["id"].decode() for record in records] == prepared.ids(name)
        assert [record["label"] for record in records] == prepared.labels(name).tolist()
        for row, record in enumerate(records):
            np.testing.assert_array_equal(record["image"], prepared.image(name, row))


def test_the_same_data_give_the_same_bytes_anywhere(raw, prepared, tmp_path):
    again = prepare(APTOS, raw, tmp_path, size=13)
    assert again.info == prepared.info
    assert contents(again.folder) == contents(prepared.folder)


def test_a_second_run_does_nothing_and_a_changed_one_refuses(tmp_path):
    raw, data = write_aptos(tmp_path / "raw"), tmp_path / "data"
    first = prepare(APTOS, raw, data, size=13)
    stamp = first.folder.stat().st_mtime_ns, (first.folder / "manifest.json").stat().st_mtime_ns
    assert prepare(APTOS, raw, data, size=13).info == first.info
    assert stamp == (
        first.folder.stat().st_mtime_ns,
        (first.folder / "manifest.json").stat().st_mtime_ns,
    )
    before = contents(data)
    (raw / "train.csv").write_text((raw / "train.csv").read_text().replace("eye003,3", "eye003,4"))
    with pytest.raises(UserError, match=r"differs in: table, source\);.* --overwrite"):
        prepare(APTOS, raw, data, size=13)
    assert contents(data) == before
    replaced = prepare(APTOS, raw, data, size=13, overwrite=True)
    assert replaced.info.manifest_sha256 != first.info.manifest_sha256
    write_image(raw / "train_images" / "eye005.png", seed=77)
    with pytest.raises(UserError, match=r"differs in: source\)"):
        prepare(APTOS, raw, data, size=13)
    assert {path.name for path in (data / "aptos2019").iterdir()} == {
        *(".lock", ".13-upstream.stamps", "13-upstream")
    }


def test_a_file_of_other_content_is_noticed_although_its_size_is_the_same(tmp_path, read):
    raw, data = write_aptos(tmp_path / "raw"), tmp_path / "data"
    prepare(APTOS, raw, data, size=13)
    for name in ("eye003", "eye008"):
        os.utime(raw / "train_images" / f"{name}.png", ns=(1, 1))
    read.clear()
    prepare(APTOS, raw, data, size=13)
    assert sorted(read) == ["eye003", "eye008"]  # touched, and found to be the same
    prepare(APTOS, raw, data, size=13)
    assert len(read) == 2

    path = raw / "train_images" / "eye008.png"
    same_size = bytearray(path.read_bytes())
    same_size[-1] ^= 1  # in the checksum of the last chunk, which Pillow does not mind
    path.write_bytes(same_size)
    with pytest.raises(UserError, match=r"the content of 1 image file\(s\): row 10 \('eye008'\)"):
        prepare(APTOS, raw, data, size=13)

    path.write_bytes(bytes(same_size[:-1]) + bytes([same_size[-1] ^ 1]))
    (data / "aptos2019" / ".13-upstream.stamps").unlink()  # as on another machine
    read.clear()
    prepare(APTOS, raw, data, size=13)
    assert len(read) == 31


def _append(line):
    return lambda raw: (raw / "train.csv").open("a").write(line + "\n")


def _truncate(raw):
    path = raw / "train_images" / "eye004.png"
    path.write_bytes(path.read_bytes()[:-40])


def _link_out(raw):
    write_image(raw / "outside.png", seed=5)
    (raw / "train_images" / "eye004.png").unlink()
    (raw / "train_images" / "eye004.png").symlink_to(raw / "outside.png")


def _place(make):
    def spoil(raw):
        path = raw / "train_images" / "eye004.png"
        path.unlink()
        make(path)

    return spoil


ODD = [
    (_place(os.mkfifo), "image file is a pipe"),
    (_place(Path.mkdir), "image file (is a folder|cannot be read .Is a directory)"),
    (_place(lambda path: path.symlink_to(path)), "cannot be read .Too many levels of symbolic"),
]


@pytest.mark.parametrize(("spoil", "message"), ODD)
def test_what_is_no_file_is_left_out_unread(tmp_path, spoil, message):
    raw = write_aptos(tmp_path / "raw")
    spoil(raw)
    (problem,) = check(APTOS, raw, processes=1).problems
    assert re.search(message, problem)
    ours = prepare(APTOS, raw, tmp_path / "data", size=13, on_bad="quarantine")
    (left_out,) = ours.manifest["quarantined"]
    assert re.search(message, left_out["reason"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *ODD,
        (_append("ghost,1"), r"missing \(1\): row 33 \('ghost'\): .*ghost\.png\n.*quarantine"),
        (_append("eye007,1"), r"used more than once \(2\): row 9 \('eye007'\); row 33"),
        (_append("eye007,7"), r"outside the classes.*: '7'"),
        (_append("../secret,1"), r"has '..'.* row 33 \('../secret'\)"),
        (_append("/etc/secret,1"), r"is absolute.* row 33"),
        (_append("a\\b,1"), "has a backslash"),
        (_append("a\0b,1"), "not text"),
        (_append(",1"), r"id is empty \(1\): row 33"),
        (_truncate, r"cut short .*row 6 \('eye004'\): .*eye004\.png"),
        (_link_out, r"symbolic link \(1\): row 6"),
        (lambda raw: (raw / "train.csv").write_text(""), "is empty"),
        (lambda raw: (raw / "train.csv").unlink(), r"train\.csv is not a file"),
        (lambda raw: (raw / "train_images").rename(raw / "images"), "train_images is not a folder"),
    ],
)
def test_bad_raw_data_give_one_message_and_leave_nothing(tmp_path, spoil, message):
    raw, data = write_aptos(tmp_path / "raw"), tmp_path / "data"
    spoil(raw)
    with pytest.raises(UserError, match=f"(?s){message}"):
        prepare(APTOS, raw, data, size=13)
    assert contents(data) == {}


def test_all_bad_images_are_named_in_one_message(tmp_path):
    raw = write_aptos(tmp_path / "raw")
    for i in (4, 9, 20):
        (raw / "train_images" / f"eye{i:03}.png").write_text("text")
    with pytest.raises(UserError, match=r"not an image .*\(3\)") as error:
        prepare(APTOS, raw, tmp_path / "data", size=13)
    assert all(f"'eye{i:03}'" in str(error.value) for i in (4, 9, 20))


def test_quarantine_leaves_bad_images_out_by_name_and_the_others_where_they_were(
    tmp_path, prepared
):
    raw = write_aptos(tmp_path / "raw")
    _truncate(raw)
    (raw / "train_images" / "eye007.png").unlink()
    ours = prepare(APTOS, raw, tmp_path / "data", size=13, on_bad="quarantine")
    bad = {entry["id"]: entry["reason"] for entry in ours.manifest["quarantined"]}
    assert bad.keys() == {"eye004", "eye007"}
    assert "cut short" in bad["eye004"]
    assert "missing" in bad["eye007"]
    for name in SPLITS:
        assert ours.ids(name) == [i for i in prepared.ids(name) if i not in bad]
        assert ours.info.counts[name] == len(ours.split(name)) == len(ours.ids(name))


def test_quarantine_never_leaves_a_split_empty(tmp_path, prepared):
    raw = write_aptos(tmp_path / "raw")
    for image_id in prepared.ids("test"):
        (raw / "train_images" / f"{image_id}.png").unlink()
    with pytest.raises(UserError, match="test would have no image"):
        prepare(APTOS, raw, tmp_path / "data", size=13, on_bad="quarantine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "upstraem"}, "unknown split of aptos2019 'upstraem'. Did you mean 'upstream'"),
        ({"size": 0}, "size 0: expected 1 to 4096"),
        ({"limit": -1}, "limit -1: expected a positive number"),
        ({"processes": -2}, "processes -2: expected a positive number"),
        ({"on_bad": "drop"}, "unknown policy for bad images 'drop'"),
        ({"source": None}, "aptos2019 needs --source: a folder with train.csv"),
    ],
)
def test_wrong_arguments_are_refused(raw, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        prepare(APTOS, **{"source": raw, "data_dir": tmp_path, "size": 13} | options)


def test_a_source_that_is_not_there_says_what_should_be(tmp_path):
    with pytest.raises(UserError, match=r"gone does not exist; expected a folder with train\.csv"):
        prepare(APTOS, tmp_path / "gone", tmp_path / "data")


def test_own_table(tmp_path):
    rows = [f"img/{i}.png,{'ab'[i % 2]},p{i % 7},{('train', 'train', 'val', 'test')[i % 4]}"
            for i in range(20)]  # fmt: skip
    table = write_csv(tmp_path, "path,label,group,split", rows)
    (tmp_path / "img" / "2.png").write_bytes((tmp_path / "img" / "1.png").read_bytes())
    ours = prepare(csv_spec("mine", channels=1), table, tmp_path / "data", size=11)
    info = ours.info
    assert (info.task, info.classes, info.channels) == ("binary", ("a", "b"), 1)
    assert (info.metric, info.split) == ("roc_auc", "official")
    images = np.stack([ours.image("train", i) for i in range(info.counts["train"])]) / 255
    np.testing.assert_allclose(info.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(info.std, images.std(axis=(0, 1, 2)), rtol=1e-12)
    assert ours.groups("val") == ["p2", "p6", "p3", "p0", "p4"]
    assert ours.manifest["duplicates_across_splits"] == [
        [{"split": "train", "id": "img/1.png"}, {"split": "val", "id": "img/2.png"}]
    ]
    assert ours.manifest["groups_across_splits"]["p2"] == ["train", "val"]
    assert ours.manifest["group_counts"] == {"train": 7, "val": 5, "test": 5}
    grouped = prepare(
        csv_spec("mine", channels=1), table, tmp_path / "data", size=11, split="grouped"
    )
    assert grouped.manifest["groups_across_splits"] == {}


def test_own_multilabel_table(tmp_path):
    rows = [f"{i}.png,{'|'.join(c for k, c in enumerate('xyz') if i >> k & 1)}" for i in range(30)]
    table = write_csv(tmp_path, "path,label", rows)
    ours = prepare(csv_spec("mine"), table, tmp_path / "data", size=11)
    assert ours.info.task == "multilabel"
    label = ours.split("train")[0][1]
    number = int(Path(ours.ids("train")[0]).stem)
    np.testing.assert_array_equal(label, [number >> k & 1 for k in range(3)])
    assert label.dtype == np.float32
    np.testing.assert_array_equal(ours.labels("train")[0], label)
    np.testing.assert_array_equal(ours.info.class_counts["val"], ours.labels("val").sum(axis=0))


def test_own_folders(tmp_path):
    for i in range(20):
        write_image(tmp_path / "raw" / "ab"[i % 2] / f"{i}.png", seed=i)
    ours = prepare(folder_spec("mine"), tmp_path / "raw", tmp_path / "data", size=11)
    assert (ours.info.classes, ours.info.split) == (("a", "b"), "stratified")
    assert sum(ours.info.counts.values()) == 20


def test_a_metric_that_the_task_does_not_have_is_refused(raw, tmp_path):
    spec = dataclasses.replace(APTOS, metric="mAP")
    with pytest.raises(UsageError, match="mAP"):
        prepare(spec, raw, tmp_path, size=13)


def test_images_of_one_plain_colour_are_refused(tmp_path):
    rows = [f"{i}.png,{i % 2}" for i in range(20)]
    table = write_csv(tmp_path, "path,label", rows)
    for i in range(20):
        Image.new("RGB", (9, 9), (10, 20, 30)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="same plain colour"):
        prepare(csv_spec("mine"), table, tmp_path / "data", size=11)


def test_a_drawn_set_needs_no_source(tmp_path, monkeypatch):
    spec = dataclasses.replace(
        DATASETS["synthetic"], draw=functools.partial(draw, count=23, seed=1)
    )
    first = prepare(spec, None, tmp_path, size=11)
    assert first.info.synthetic
    assert sum(first.info.counts.values()) == 23
    assert (tmp_path / "raw" / "synthetic" / "train.csv").is_file()
    assert prepare(spec, None, tmp_path, size=11).info == first.info
    monkeypatch.setattr(registry, "DATASETS", {"synthetic": spec})
    assert open_or_draw(tmp_path, "synthetic", 7).info.counts == first.info.counts  # drawn
    opened = {"synthetic": dataclasses.replace(spec, draw=None)}
    monkeypatch.setattr(registry, "DATASETS", opened)
    assert open_or_draw(tmp_path, "synthetic", 11).info == first.info


@pytest.mark.parametrize("spec", DATASETS.values(), ids=list(DATASETS))
def test_every_registered_data_set_has_a_metric_of_the_study_or_none(spec):
    if spec.metric:
        assert any(spec.metric in task.metrics for task in TASKS.values())
    assert spec.layout
    assert spec.splits


def test_opening_what_is_not_prepared_says_what_is_and_what_to_type(prepared):
    data = prepared.folder.parent.parent
    assert open_dataset(data, "aptos2019", 13).info == prepared.info
    with pytest.raises(UsageError, match=r"unknown data set 'aptos2018'. Did you mean 'aptos2019'"):
        open_dataset(data, "aptos2018", 13)
    with pytest.raises(
        UsageError,
        match=r"not prepared at size 256 .*there: aptos2019 \(size 13, split upstream\)\. .*"
        r"fmi-jax prepare aptos2019 --source FOLDER --data-dir .* --size 256$",
    ):
        open_or_draw(data, "aptos2019", 256)
    with pytest.raises(UsageError, match=r"with split 'stratified' .*--split stratified$"):
        open_dataset(data, "aptos2019", 13, "stratified")
    with pytest.raises(UsageError, match=r"Prepared there: none.*prepare synthetic --data-dir"):
        open_dataset(data / "gone", "synthetic", 13)


def test_without_a_split_the_default_one_is_opened(raw, tmp_path):
    prepare(APTOS, raw, tmp_path, size=13, split="stratified")
    assert open_dataset(tmp_path, "aptos2019", 13).info.split == "stratified"
    prepare(APTOS, raw, tmp_path, size=13, split="upstream")
    assert open_dataset(tmp_path, "aptos2019", 13).info.split == "upstream"
    table = write_csv(tmp_path / "own", "path,label", [f"{i}.png,{i % 2}" for i in range(20)])
    mine = dataclasses.replace(csv_spec("mine"), splits=APTOS.splits)
    for split in ("upstream", "stratified"):
        prepare(mine, table, tmp_path, size=13, split=split)
    with pytest.raises(UsageError, match=r"with several splits .*stratified, upstream"):
        open_dataset(tmp_path, "mine", 13)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damage_is_noticed(raw, tmp_path):
    folder = prepare(APTOS, raw, tmp_path, size=13).folder
    shard = folder / "aptos2019-train.array_record-00000"
    whole = contents(folder)

    def restored():
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        return folder

    _flip(restored() / "manifest.json", at=whole["manifest.json"].index(b"0.415") + 2)
    with pytest.raises(UserError, match=r"does not match its checksum; prepare it again"):
        open_folder(folder)
    (restored() / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not a manifest"):
        open_folder(folder)
    (restored() / shard.name).write_bytes(whole[shard.name][:-7])
    with pytest.raises(UserError, match=r"train\.array_record-00000 is missing or not of"):
        open_folder(folder)
    _flip(restored() / "index.csv", at=200)
    with pytest.raises(UserError, match=r"index\.csv is not what was prepared"):
        open_folder(folder).ids("train")
    restored()
    at = whole[shard.name].index(b"eye") if b"eye" in whole[shard.name] else 66_000
    _flip(shard, at)
    with pytest.raises(
        UserError,
        match=r"row \d+ of train \('eye\d+', in .*-00000\) cannot be read: .* --overwrite",
    ):
        [open_folder(folder).split("train")[i] for i in range(21)]


def test_several_sizes_are_prepared_in_one_pass_over_the_raw_images(raw, prepared, tmp_path, read):
    small, large = prepare_sizes(APTOS, raw, tmp_path, sizes=(13, 17))
    assert sorted(read) == [f"eye{i:03}" for i in range(31)]
    assert contents(small.folder) == contents(prepared.folder)
    image = load_image(raw / "train_images" / f"{large.ids('test')[1]}.png", 3, 17)
    np.testing.assert_array_equal(large.image("test", 1), image)
    assert (large.info.size, large.folder.name) == (17, "17-upstream")
    assert large.info.split_sha256 == small.info.split_sha256
    read.clear()
    prepare_sizes(APTOS, raw, tmp_path, sizes=(13, 17))
    assert read == []


def test_a_smoke_run_is_never_taken_for_the_whole_set(raw, prepared, tmp_path):
    ours = prepare(APTOS, raw, tmp_path, size=13, limit=3)
    assert (ours.folder.name, ours.info.split) == ("13-upstream-limit3", "upstream-limit3")
    assert ours.info.limit == 3
    for name in SPLITS:
        assert ours.ids(name) == prepared.ids(name)[:3]
    with pytest.raises(
        UsageError, match=r"split upstream-limit3\)\. To prepare it: [^:]*--size 13$"
    ):
        open_dataset(tmp_path, "aptos2019", 13)
    assert open_dataset(tmp_path, "aptos2019", 13, "upstream-limit3").info == ours.info
    with pytest.raises(UsageError, match=r"--split upstream --limit 5$"):
        open_or_draw(tmp_path, "aptos2019", 13, "upstream-limit5")
    prepare(APTOS, raw, tmp_path, size=13)
    assert open_dataset(tmp_path, "aptos2019", 13).info == prepared.info


def test_the_study_s_groups_of_classes_are_kept(raw, tmp_path):
    groups = {"referable": ("Moderate", "Severe", "Proliferative DR")}
    ours = prepare(dataclasses.replace(APTOS, class_groups=groups), raw, tmp_path, size=13)
    assert ours.info.class_groups == groups
    assert DatasetInfo.from_json(json.loads(json.dumps(ours.info.to_json()))) == ours.info


def test_a_shard_may_lose_all_its_images(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(build, "_MIN_ROWS", 3)
    raw = write_aptos(tmp_path / "raw")
    for image_id in prepared.ids("train")[3:6]:
        (raw / "train_images" / f"{image_id}.png").unlink()
    ours = prepare(APTOS, raw, tmp_path / "data", size=13, on_bad="quarantine")
    kept = [i for i in range(22) if not 3 <= i < 6]
    assert ours.ids("train") == [prepared.ids("train")[i] for i in kept]
    for mine, theirs in enumerate(kept):
        np.testing.assert_array_equal(ours.image("train", mine), prepared.image("train", theirs))


def test_what_is_prepared_is_opened_without_raw_readers_or_drawing_programs(prepared, tmp_path):
    name, size, data_dir = prepared.info.name, prepared.info.size, prepared.folder.parent.parent
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fmi_jax.data.prepared import open_dataset, open_or_draw\n"
        f"dataset = open_dataset(Path({str(data_dir)!r}), {name!r}, {size})\n"
        "assert dataset.split('train')[0][0].shape[0] == dataset.info.size\n"
        f"drawn = open_or_draw(Path({str(tmp_path)!r}), 'synthetic', {size})\n"
        "assert drawn.info == dataset.info\n"
        "assert 'matplotlib' not in sys.modules\n"
        "print(*(name for name in sys.modules if name.startswith('fmi_jax.data.')))\n"
    )
    shutil.copytree(prepared.folder, tmp_path / "synthetic" / prepared.folder.name)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=runs.ROOT)
    known = ("boxes", "labels", "prepared", "raw", "raw.spec")
    expected = {f"fmi_jax.data.{name}" for name in known}
    assert set(done.stdout.split()) == expected
