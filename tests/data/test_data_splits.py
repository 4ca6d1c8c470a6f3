import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.spec import SPLITS, RawExample
from fmi_jax.data.raw.splits import assign, grouped, official, stratified, upstream
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
    rows = upstream(examples_of([0] * 13))
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
