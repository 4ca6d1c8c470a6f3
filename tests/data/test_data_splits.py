import hashlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fmi_jax.data.raw.balance import Unevenness, deal, unevenness
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.spec import SPLITS, RawExample
from fmi_jax.data.raw.splits import FRACTIONS, assign, grouped, official, stratified, upstream
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError


def examples_of(labels, groups=None, splits=None):
    groups, splits = groups or [None] * len(labels), splits or [None] * len(labels)
    return [
        RawExample(id=f"i{i}", path=f"{i}.png", label=label, group=group, split=split, row=i + 2)
        for i, (label, group, split) in enumerate(zip(labels, groups, splits, strict=True))
    ]


def test_upstream_split_is_the_study_s_own_for_aptos2019():
    rows = upstream(examples_of([0] * 3662))
    assert [len(rows[name]) for name in SPLITS] == [2564, 549, 549]
    assert rows["val"][:4] == [2791, 2171, 1708, 2071]
    assert rows["test"][:4] == [1490, 1713, 2516, 2279]
    assert rows["train"][:4] == [2284, 183, 121, 1594]
    digests = {
        name: hashlib.sha256(",".join(map(str, rows[name])).encode()).hexdigest()[:16]
        for name in SPLITS
    }
    assert digests == {
        "train": "31c895cea1546ef5",
        "val": "7a2c0c1bda8639f2",
        "test": "33e75ca8c85af985",
    }


def test_upstream_split_cuts_before_it_halves():
    # random.Random(42) puts 13 rows in this order; 3 of them are held out: 1 and 2.
    order = [7, 6, 2, 9, 12, 5, 11, 8, 3, 4, 0, 1, 10]
    rows = upstream(examples_of([i % 3 for i in range(13)]))
    assert rows == {"val": order[:1], "test": order[1:3], "train": order[3:]}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=80))
def test_every_row_is_in_one_split_and_every_group_too(pairs):
    labels, groups = zip(*pairs, strict=True)
    examples = examples_of(labels, [f"g{g}" for g in groups])
    for rule in (upstream, stratified, grouped):
        rows = rule(examples)
        members = [row for name in SPLITS for row in rows[name]]
        assert sorted(members) == list(range(len(labels)))
    split_of = {row: name for name, members in grouped(examples).items() for row in members}
    for group in set(groups):
        assert len({split_of[i] for i, g in enumerate(groups) if g == group}) == 1


def test_stratified_split_has_the_shares_of_every_class_also_of_rare_ones():
    labels = [0] * 400 + [1] * 97 + [2] * 20 + [3] * 7
    rows = stratified(examples_of(labels))
    for label in range(4):
        total = labels.count(label)
        for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            found = sum(labels[i] == label for i in rows[name])
            assert abs(found - share * total) <= 1, (label, name)
    assert rows == stratified(examples_of(labels))


def test_stratified_split_takes_combinations_of_labels():
    labels = [(float(i % 2), float(i % 3 == 0)) for i in range(120)]
    rows = stratified(examples_of(labels))
    for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        counts = np.sum([labels[i] for i in rows[name]], axis=0)
        assert np.allclose(counts, np.sum(labels, axis=0) * share, atol=2)


def test_grouped_split_has_about_the_shares():
    groups = [f"patient{i // 3}" for i in range(300)]
    rows = grouped(examples_of([i // 3 % 2 for i in range(300)], groups))
    assert [len(rows[name]) for name in SPLITS] == pytest.approx([210, 45, 45], abs=3)


RATIOS = tuple(FRACTIONS.values())


def table_of_counts(rng):
    """Images of each class in groups of many sizes; half the tables are multi-label."""
    groups = int(rng.integers(3, 30) if rng.random() < 0.95 else rng.integers(60, 110))
    classes = int(rng.integers(2, 7))
    sizes = rng.geometric(rng.uniform(0.15, 1), groups)
    if rng.random() < 0.5:
        common = rng.dirichlet(np.full(classes, rng.uniform(0.2, 2)))
        mixed = rng.random() < 0.5
        shares = [common if mixed else rng.dirichlet(common * 3 + 1e-3) for _ in sizes]
        counts = [rng.multinomial(n, share) for n, share in zip(sizes, shares, strict=True)]
    else:
        counts = rng.binomial(sizes[:, None], rng.uniform(0.01, 0.5, classes))
    return np.column_stack([counts, sizes]).astype(float)


def shares_of(counts, dealing):
    """Share of each class in each split, `[split, class]`, and of its largest group, `[class]`."""
    counts = counts[:, counts.any(axis=0)] / counts.sum(axis=0)[counts.any(axis=0)]
    dealt = np.array([counts[dealing == split].sum(axis=0) for split in range(3)])
    return dealt, counts.max(axis=0)


def test_groups_are_dealt_as_evenly_as_the_best_of_a_hundred_random_dealings():
    rng = np.random.default_rng(2)
    for number in range(1000):
        counts = table_of_counts(rng)
        dealing = deal(counts, RATIOS)
        assert {*dealing.tolist()} == {0, 1, 2}
        ours = unevenness(counts, dealing, RATIOS)
        drawn = rng.choice(3, (100, len(counts)), p=RATIOS)
        drawn = drawn[[(row[:, None] == np.arange(3)).any(axis=0).all() for row in drawn]]
        held = np.stack([(drawn == split) @ counts for split in range(3)], axis=1)
        total = counts.sum(axis=0)
        off = np.abs(held / np.where(total, total, 1) - np.array(RATIOS)[:, None])[..., total > 0]
        theirs = sorted(zip(off.max(axis=(1, 2)), off.sum(axis=(1, 2)), strict=True))
        assert ours.largest <= theirs[0][0] + 1e-6, number
        if theirs[0][0] <= ours.largest + 1e-6:
            assert ours.total <= theirs[0][1] + 1e-6, number
        shares, largest = shares_of(counts, dealing)
        off = np.abs(shares - np.array(RATIOS)[:, None]).max(axis=0)
        assert off[largest <= 0.02].max(initial=0) <= 0.02, number


def test_a_large_table_is_dealt_evenly():
    """A melanoma challenge's size: 33,126 images of 2,056 patients, 584 of them positive."""
    rng, groups = np.random.default_rng(0), 2056
    sizes = 1 + rng.multinomial(33126 - groups, rng.dirichlet(np.ones(groups)))
    patient = np.repeat(np.arange(groups), sizes)
    label = np.zeros(len(patient), int)
    label[rng.permutation(len(label))[:584]] = 1
    examples = examples_of(label.tolist(), [f"p{p}" for p in patient])
    rows = grouped(examples)
    found = [(len(rows[name]) / 33126, label[rows[name]].sum() / 584) for name in SPLITS]
    np.testing.assert_allclose(found, np.repeat(np.array(RATIOS)[:, None], 2, axis=1), atol=0.005)
    patients = [{*patient[rows[name]].tolist()} for name in SPLITS]
    assert sum(map(len, patients)) == len(set.union(*patients)) == groups


def test_a_patient_with_several_classes_counts_for_each_of_them():
    """39 melanomas in 260 images of 124 patients, most of whom have other lesions, too."""
    rng = np.random.default_rng(7)
    patient = np.concatenate([np.arange(124), rng.integers(0, 124, 136)])
    label = np.array(["nevus"] * 260, object)
    label[rng.permutation(260)[:39]] = "melanoma"
    names = ["melanoma", "nevus"]
    rows = grouped(examples_of([names.index(x) for x in label], [f"p{p}" for p in patient]))
    for name, ratio in FRACTIONS.items():
        assert np.mean(label[rows[name]] == "melanoma") == pytest.approx(39 / 260, abs=0.02)
        assert abs((label[rows[name]] == "melanoma").sum() / 39 - ratio) < 0.02
    assert rows == grouped(examples_of([names.index(x) for x in label], [f"p{p}" for p in patient]))


def test_few_groups_and_absent_classes():
    assert deal(np.array([[3.0, 3.0]]), RATIOS).tolist() == [0]
    assert deal(np.ones((2, 2)), RATIOS).tolist() == [0, 1]
    assert sorted(deal(np.ones((3, 2)), RATIOS).tolist()) == [0, 1, 2]
    counts = np.column_stack([np.ones(20), np.zeros(20), np.ones(20)])
    dealing = deal(counts, RATIOS)
    assert np.bincount(dealing).tolist() == [14, 3, 3]
    assert unevenness(counts, dealing, RATIOS) == Unevenness(pytest.approx(0), pytest.approx(0))


def test_default_split_is_the_first_that_the_rows_allow():
    labels, splits = [0, 1] * 20, ["train", "val", "test", "train"] * 10
    groups = [f"g{i}" for i in range(40)]
    spec = csv_spec("mine")
    assert assign(spec, "", examples_of(labels, groups, splits))[0] == "official"
    assert assign(spec, "", examples_of(labels, groups))[0] == "grouped"
    assert assign(spec, "", examples_of(labels))[0] == "stratified"
    assert assign(DATASETS["aptos2019"], "", examples_of(labels))[0] == "upstream"


def test_official_split_keeps_the_order_of_the_table():
    rows = official(examples_of([0] * 5, splits=["test", "train", "val", "train", "test"]))
    assert rows == {"train": [1, 3], "val": [2], "test": [0, 4]}


@pytest.mark.parametrize(
    ("split", "examples", "message"),
    [
        ("upstraem", examples_of([0, 1] * 9), "Did you mean 'upstream'"),
        ("upstream", examples_of([0, 1]), "leaves val and test without an image"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split, examples, message):
    with pytest.raises(UsageError, match=message):
        assign(DATASETS["aptos2019"], split, examples)


def test_a_row_without_its_group_or_split_is_named():
    with pytest.raises(UsageError, match=r"2 have none: row 3 \('i1'\), row 5"):
        grouped(examples_of([0] * 4, ["a", None, "b", ""]))
    with pytest.raises(UsageError, match=r"needs train, val, test .* row 3 \('i1'\): 'dev'"):
        official(examples_of([0] * 3, splits=["train", "dev", "test"]))
