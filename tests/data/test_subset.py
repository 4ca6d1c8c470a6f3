"""Parts of the training split: the same for everyone, nested, and true to the classes."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from raw_sets import write_aptos

from fmi_jax.data.labels import Label
from fmi_jax.data.loader import train_batches
from fmi_jax.data.prepared import open_folder
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.registry import DATASETS
from fmi_jax.data.subset import few_shot_rows, fraction_rows, training_subset
from fmi_jax.errors import UsageError, UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subset")
    return prepare(DATASETS["aptos2019"], write_aptos(folder / "raw"), folder / "data", size=5)


def ids_of(labels):
    return [f"image{i}" for i in range(len(labels))]


@st.composite
def single_labels(draw):
    counts = draw(st.lists(st.integers(1, 60), min_size=2, max_size=7))
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


fractions = st.floats(0.01, 1)


@settings(deadline=None, max_examples=60)
@given(single_labels(), fractions, fractions, st.integers(0, 9))
def test_a_fraction_keeps_the_shares_and_lies_in_every_larger_one(labels, one, other, seed):
    small, large = sorted((one, other))
    counts = np.bincount(labels)
    assume(round(small * len(labels)) >= len(counts))
    rows = {f: fraction_rows(ids_of(labels), labels, f, seed) for f in (small, large, 1.0)}
    assert set(rows[small]) <= set(rows[large])
    assert rows[1.0] == list(range(len(labels)))
    assert rows[small] == sorted(set(rows[small]))
    assert len(rows[small]) == round(small * len(labels))
    kept = np.bincount(labels[rows[small]], minlength=len(counts))
    assert kept.min() >= 1
    assert np.all(np.abs(kept - small * counts) <= len(counts))


def test_shares_are_exact_where_they_are_whole_numbers():
    labels = np.repeat(np.arange(3), (200, 100, 60))
    for fraction in (0.05, 0.1, 0.5):
        rows = fraction_rows(ids_of(labels), labels, fraction, 3)
        np.testing.assert_array_equal(np.bincount(labels[rows]), fraction * np.bincount(labels))


@pytest.mark.parametrize("seed", [0, 1])
def test_many_labels_keep_the_share_of_frequent_combinations_and_of_rare_ones_together(seed):
    rng = np.random.default_rng(seed)
    frequent = np.repeat([[0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]], (600, 300), axis=0)
    labels = np.concatenate([frequent, rng.integers(0, 2, (300, 7))]).astype(np.float32)
    small = fraction_rows(ids_of(labels), labels, 0.1, seed)
    assert len(small) == 120
    assert set(small) <= set(fraction_rows(ids_of(labels), labels, 0.3, seed))
    parts = np.bincount(np.digitize(small, [600, 900]), minlength=3)
    np.testing.assert_allclose(parts, [60, 30, 30], atol=8)


@settings(deadline=None, max_examples=30)
@given(single_labels(), st.integers(1, 9), st.integers(0, 9))
def test_shots_are_as_many_of_each_class_and_lie_in_more_shots(labels, shots, seed):
    classes = [f"class{i}" for i in range(labels.max() + 1)]
    least = np.bincount(labels).min()
    draw = (ids_of(labels), labels, classes)
    if shots > least:
        with pytest.raises(UsageError, match=rf"data.shots={shots}: .* at most {least}\."):
            few_shot_rows(*draw, shots, seed)
        return
    rows = few_shot_rows(*draw, shots, seed)
    assert np.bincount(labels[rows]).tolist() == [shots] * len(classes)
    assert set(few_shot_rows(*draw, 1, seed)) <= set(rows)


def test_a_draw_follows_the_ids_and_the_seed_and_never_changes():
    # Results are compared years later: another draw would be another experiment.
    labels = np.arange(40) % 4
    ids = ids_of(labels)
    shots = [1, 7, 8, 14, 15, 16, 21, 26]
    assert fraction_rows(ids, labels, 0.2, 2) == [0, 5, 7, 11, 28, 30, 37, 38]
    assert few_shot_rows(ids, labels, "abcd", 2, 0) == shots
    assert few_shot_rows(ids, labels, "abcd", 2, 1) != shots
    order = np.random.default_rng(0).permutation(40)
    moved = few_shot_rows([ids[i] for i in order], labels[order], "abcd", 2, 0)
    assert sorted(order[moved]) == shots


def test_a_part_says_what_it_is_and_leaves_validation_and_test_alone(dataset):
    part = training_subset(dataset, shots=2, seed=1)
    assert part.info.counts == {**dataset.info.counts, "train": 10}
    assert part.info.class_counts["train"] == (2.0,) * 5
    assert part.info.class_counts["test"] == dataset.info.class_counts["test"]
    assert part.info.mean == dataset.info.mean
    assert np.bincount(part.labels("train")).tolist() == [2] * 5
    for split in ("val", "test"):
        assert part.ids(split) == dataset.ids(split)
        assert len(part.split(split)) == len(dataset.split(split))
    others = [training_subset(dataset, shots=2), training_subset(dataset, shots=3, seed=1), dataset]
    assert len({x.info.split_sha256 for x in (part, *others)}) == 4
    assert training_subset(dataset) is dataset
    same = training_subset(dataset, fraction=0.999)  # rounded, that is everything
    assert len(same.split("train")) == len(dataset.split("train"))
    assert same.info.split_sha256 == dataset.info.split_sha256
    assert same.info.class_counts == dataset.info.class_counts
    assert type(part.info).from_json(part.info.to_json()) == part.info


def test_its_images_are_those_of_its_ids(dataset):
    part = training_subset(dataset, fraction=0.5)
    all_ids = dataset.ids("train")
    assert len(part.ids("train")) == len(part.split("train")) == 11
    for row, id in enumerate(part.ids("train")):
        image, label = dataset.split("train")[all_ids.index(id)]
        np.testing.assert_array_equal(part.image("train", row), image)
        assert part.split("train")[row][1] == label == part.labels("train")[row]


@pytest.mark.parametrize("options", [(1, 0), (1, 1), (2, 0)], ids=str)
def test_batches_hold_the_part_alone_whoever_reads_them(dataset, options):
    part = training_subset(dataset, fraction=0.5)
    hosts, workers = options
    streams = [
        train_batches(part, batch_size=4, seed=7, threads=1, workers=workers, places=places)
        for places in np.split(np.arange(4), hosts)
    ]
    steps = [[next(stream) for stream in streams] for _ in range(11)]  # four passes
    rows = np.concatenate([batch["index"] for batch in itertools.chain(*steps)])
    images = np.concatenate([batch["inputs"] for batch in itertools.chain(*steps)])
    np.testing.assert_array_equal(np.sort(rows.reshape(4, 11)), np.tile(np.arange(11), (4, 1)))
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(image, part.image("train", int(row)))


def test_a_damaged_record_of_a_part_is_named(dataset):
    part = training_subset(open_folder(dataset.folder), fraction=0.5)
    split, row = part.split("train"), 3

    class Damaged:
        def __getitem__(self, record):
            raise ValueError("checksum")

    split.__dict__["_source"] = Damaged()
    with pytest.raises(UserError, match=part.ids("train")[row]):
        split[row]


def test_what_cannot_be_drawn_is_refused(dataset):
    with pytest.raises(UsageError, match=r"keeps 2 of 22 .* least 5, one of each class; .* 0.2046"):
        training_subset(dataset, fraction=0.1)
    assert training_subset(dataset, fraction=0.2046).info.counts["train"] == 5
    with pytest.raises(UsageError, match=r"shots=99: .*'Mild' has 4"):
        training_subset(dataset, shots=99)
    with pytest.raises(UsageError, match="both set"):
        training_subset(dataset, fraction=0.5, shots=1)
    several = dataclasses.replace(dataset.info, label=Label.VECTOR, task="multilabel")
    with pytest.raises(UsageError, match="several classes"):
        training_subset(dataclasses.replace(dataset, info=several), shots=1)
