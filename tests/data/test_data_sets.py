"""What every data set of the registry must do, shown on a small raw set drawn in its layout."""

import collections
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from raw_sets import locate_images

from fmi_jax.data.labels import Label
from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.data.raw.splits import assign
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError, UserError
from fmi_jax.tasks.registry import TASKS, suitable

OWN_DATA = {"csv", "folder"}
PUBLIC = [name for name, spec in DATASETS.items() if name not in OWN_DATA and not spec.synthetic]

# Rows that a rule puts into two splits. The study cut CheXpert's table twice through a row.
ROWS_IN_TWO_SPLITS = {
    (name, "upstream"): 2
    for name in (
        *("chexpert", "chexpert_u_ones", "chexpert_smooth", "chexpert_rgb"),
        "chexpert_u_ignore",
    )
}

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "data.md"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a raw set as its layout draws it; sets of one layout share it."""

    @functools.cache
    def folder(draw):
        draw(path := tmp_path_factory.mktemp("raw") / "drawn")
        return path

    return lambda name: folder(DATASETS[name].draw)


@pytest.fixture(scope="module", params=PUBLIC)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def spec(name):
    return DATASETS[name]


@pytest.fixture(scope="module")
def source(name, drawn):
    return drawn(name)


@pytest.fixture(scope="module")
def raw(spec, source):
    return spec.read(source)


@pytest.fixture(scope="module")
def prepared(spec, source, tmp_path_factory):
    return prepare(spec, source, tmp_path_factory.mktemp("data"), size=13, processes=1)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_is_described(spec):
    for text in (spec.layout, spec.citation, spec.licence):
        assert text.strip()
    assert spec.url.startswith("https://")
    assert {len(spec.mean or ()), len(spec.std or ())} <= {0, spec.channels}


def test_rows_are_what_the_task_says(spec, raw):
    assert len({example.id for example in raw.examples}) == len(raw.examples) >= 30
    assert spec.metric in TASKS[suitable(raw.label, raw.classes).name].metrics
    labels = np.array([example.label for example in raw.examples])
    if suitable(raw.label, raw.classes).name == "multilabel":
        assert labels.shape[1:] == (len(raw.classes),)
        assert 0 <= np.nanmin(labels) <= np.nanmax(labels) == 1
        assert (np.nanmax(labels, axis=0) > 0).all(), "a class is never drawn"
    elif raw.label is Label.LAYERS:
        assert labels.shape[1:] == (len(raw.classes),)
        assert set(labels.ravel().tolist()) <= {0, 1}
        assert labels.any(axis=0).all(), "a class is never drawn"
    elif raw.label is Label.MAP:
        assert raw.classes[0] == "background"
        assert 1 in labels
        assert set(labels.tolist()) <= {0, 1}
    else:
        assert set(labels.tolist()) == set(range(len(raw.classes)))
        assert (suitable(raw.label, raw.classes).name == "binary") == (len(raw.classes) == 2)
    for group in spec.class_groups.values():
        assert set(group) < set(raw.classes)


def test_check_finds_nothing_wrong(spec, source):
    assert check(spec, source, processes=1).problems == []


def test_every_rule_divides_the_rows(spec, raw):
    """Those that need a list which only the user can bring say so; the default rule works."""
    works, refusals = [], []
    for rule in spec.splits:
        try:
            _, rows = assign(spec, rule, raw.examples)
        except UsageError as error:
            refusals.append(str(error))
            continue
        works.append(rule)
        times = collections.Counter(row for split in SPLITS for row in rows[split])
        assert set(times) <= set(range(len(raw.examples)))
        assert times.total() - len(times) <= ROWS_IN_TWO_SPLITS.get((spec.name, rule), 0)
        assert assign(spec, rule, list(raw.examples)) == (rule, rows)
        if rule == "stratified":
            assert len(times) == len(raw.examples)
        if rule == "grouped":
            groups = [{raw.examples[row].group for row in rows[split]} for split in SPLITS]
            assert sum(map(len, groups)) == len(set.union(*groups))
            assert None not in set.union(*groups)
    assert assign(spec, "", raw.examples)[0] in works
    assert all("needs" in refusal for refusal in refusals), refusals


def test_the_default_split_keeps_groups_together(spec, raw):
    """Also where the study, or a published list, puts images of one patient into two splits."""
    _, rows = assign(spec, "", raw.examples)
    groups = [{raw.examples[row].group for row in rows[split]} - {None} for split in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_it_is_prepared_row_by_row_and_called_synthetic(spec, raw, prepared):
    info = prepared.info
    rule, rows = assign(spec, "", raw.examples)
    assert (info.name, info.split, info.classes) == (spec.name, rule, raw.classes)
    task = suitable(raw.label, raw.classes).name
    assert (info.task, info.channels, info.metric) == (task, spec.channels, spec.metric)
    assert info.synthetic
    for split in SPLITS:
        examples = [raw.examples[row] for row in rows[split]]
        assert prepared.ids(split) == [example.id for example in examples]
        labels = np.array([example.label for example in examples], np.float32)
        image, label = prepared.split(split)[len(examples) - 1]
        assert (image.shape, image.dtype) == ((13, 13, spec.channels), np.uint8)
        if raw.label is Label.MAP:  # what the index holds of a map is whether it has each class
            np.testing.assert_array_equal(prepared.labels(split)[:, 1], labels)
            assert set(np.unique(label)) <= {0, labels[-1]}
        elif raw.label is Label.LAYERS:
            np.testing.assert_array_equal(prepared.labels(split), labels)
            each = [(label & 2**c).any() for c in range(len(raw.classes))]
            np.testing.assert_array_equal(each, labels[-1])
        else:
            np.testing.assert_array_equal(prepared.labels(split), labels)
            np.testing.assert_array_equal(label, labels[-1])
        groups = [example.group or example.id for example in examples]
        assert prepared.groups(split) in (groups, None)
    has_groups = any(example.group for example in raw.examples)
    assert (prepared.groups("train") is not None) == has_groups


def test_images_differ_and_are_not_plain(prepared):
    images = np.stack([prepared.image("train", i) for i in range(prepared.info.counts["train"])])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) >= len(images) - 2
    assert images.std(axis=(1, 2)).min() > 1


def test_a_second_preparation_does_nothing(spec, source, prepared):
    manifest = prepared.folder / "manifest.json"
    before = manifest.stat().st_mtime_ns
    again = prepare(spec, source, prepared.folder.parent.parent, size=13, processes=1)
    assert (again.info, manifest.stat().st_mtime_ns) == (prepared.info, before)


def test_a_file_that_is_cut_short_is_named(spec, source, raw, tmp_path):
    copy = shutil.copytree(source, tmp_path / "raw")
    spoilt = locate_images(spec.read(copy))[len(raw.examples) // 2]
    spoilt.write_bytes(spoilt.read_bytes()[:150])
    problems = check(spec, copy, processes=1).problems
    assert any(spoilt.name in line for line in problems), problems


def test_a_folder_that_is_not_it_is_refused_in_words(spec, tmp_path):
    problems = check(spec, tmp_path, processes=1).problems
    assert problems
    assert any("expected" in line.lower() for line in problems), problems


def test_drawing_again_gives_the_same_bytes_and_spoils_nothing(spec, source, tmp_path):
    spec.draw(tmp_path / "again")
    assert files(tmp_path / "again") == files(source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        spec.draw(tmp_path / "mine")
    assert files(tmp_path / "mine") == {"thesis.txt": b"mine"}


def test_every_data_set_is_in_the_documentation():
    text = DOCS.read_text()
    assert [name for name in DATASETS if f"`{name}`" not in text] == []
