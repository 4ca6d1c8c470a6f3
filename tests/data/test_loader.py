import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from raw_sets import write_aptos, write_csv

from fmi_jax.data import loader
from fmi_jax.data.loader import batch_ids, eval_batches, train_batches
from fmi_jax.data.prepared import PreparedDataset, open_folder
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError, UserError

BATCH, SEED = 8, 5  # of 22 training images: batches reach over the borders of passes

# Places of a batch of 8 as the processes of a run hold them: alone; two and four parts in a row;
# a pod's torus that comes back to a process; and a "model" axis over two processes.
HELD = [
    [[0, 1, 2, 3, 4, 5, 6, 7]],
    [[0, 1, 2, 3], [4, 5, 6, 7]],
    [[0, 1], [2, 3], [4, 5], [6, 7]],
    [[0, 1, 6, 7], [2, 3, 4, 5]],
    [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]],
]
properties = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    return prepare(DATASETS["aptos2019"], write_aptos(folder / "raw"), folder / "data", size=13)


def take(dataset, count, batch_size=BATCH, seed=SEED, **options):
    options = {"threads": 1} | options
    batches = train_batches(dataset, batch_size=batch_size, seed=seed, **options)
    return list(itertools.islice(batches, count))


def assert_same(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert a.keys() == b.keys() == {"inputs", "labels", "mask", "index"}
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def whole(parts, held):
    """Batches put together from those of several processes; what two of them hold is the same."""
    batches = []
    for step in zip(*parts, strict=True):
        batch = {
            name: np.zeros((1 + max(map(max, held)), *x.shape[1:]), x.dtype)
            for name, x in step[0].items()
        }
        for part, places in zip(step, held, strict=True):
            for name, x in part.items():
                batch[name][places] = x
        for part, places in zip(step, held, strict=True):
            assert_same([part], [{name: x[places] for name, x in batch.items()}])
        batches.append(batch)
    return batches


@pytest.fixture(scope="module")
def expected(dataset):
    return take(dataset, 12)


def test_a_batch_holds_the_images_and_labels_of_its_rows(dataset, expected):
    for batch in expected[:3]:
        assert batch["inputs"].shape == (BATCH, 13, 13, 3)
        assert batch["inputs"].dtype == np.uint8
        assert (batch["labels"].dtype, batch["index"].dtype) == (np.int32, np.int32)
        assert batch["mask"].dtype == np.float32
        assert batch["mask"].tolist() == [1.0] * BATCH
        for image, label, row in zip(batch["inputs"], batch["labels"], batch["index"], strict=True):
            stored_image, stored_label = dataset.split("train")[int(row)]
            np.testing.assert_array_equal(image, stored_image)
            assert label == stored_label


def test_every_pass_has_every_image_once_in_an_order_of_its_own(dataset):
    rows = np.concatenate([batch["index"] for batch in take(dataset, 11)])  # 4 passes of 22
    passes = rows.reshape(4, 22)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(22), (4, 1)))
    assert len({tuple(one) for one in passes}) == 4
    other = np.concatenate([batch["index"] for batch in take(dataset, 3, seed=SEED + 1)])
    assert other[:22].tolist() != rows[:22].tolist()


def test_the_order_of_a_seed_never_changes(expected):
    # Runs are resumed and repeated years later: a new order would be another experiment.
    assert [batch["index"].tolist() for batch in expected[:3]] == [
        [4, 0, 14, 20, 7, 19, 8, 10],
        [15, 16, 1, 21, 11, 3, 17, 12],
        [6, 18, 5, 9, 13, 2, 16, 14],
    ]


@properties
@given(
    threads=st.integers(0, 7),
    held=st.sampled_from(HELD),
    start_step=st.integers(0, 11),
    in_memory=st.booleans(),
)
def test_batches_depend_on_seed_and_step_alone(
    dataset, expected, threads, held, start_step, in_memory
):
    with pytest.MonkeyPatch.context() as patch:
        if not in_memory:
            patch.setattr(loader, "IN_MEMORY_BYTES", 0)
        options = {"threads": threads, "start_step": start_step}
        parts = [take(dataset, 12 - start_step, places=np.array(p), **options) for p in held]
    assert_same(whole(parts, held), expected[start_step:])


def test_batches_do_not_depend_on_workers(dataset, expected):
    places = np.array([0, 1, 6, 7])
    ours = take(dataset, 6, start_step=6, workers=2, places=places)
    part = [{name: x[places] for name, x in batch.items()} for batch in expected[6:]]
    assert_same([{name: x.copy() for name, x in batch.items()} for batch in ours], part)


def test_a_batch_is_named_without_reading_it(dataset, expected):
    ids = dataset.ids("train")
    for step in (0, 2, 11):
        named = batch_ids(dataset, SEED, step, BATCH)
        assert named == [ids[row] for row in expected[step]["index"]]


def test_a_batch_may_be_larger_than_the_split(dataset):
    batch = take(dataset, 1, batch_size=50)[0]
    assert np.bincount(batch["index"], minlength=22).min() >= 2


@properties
@given(batch_size=st.integers(1, 19), held=st.sampled_from(HELD))
def test_evaluation_sees_every_image_once_in_order(dataset, batch_size, held):
    held = [[place for place in range(batch_size) if place % 8 in places] for places in held]
    held = [places for places in held if places]
    parts = [
        list(eval_batches(dataset, "test", batch_size=batch_size, places=np.array(places)))
        for places in held
    ]
    assert {len(part) for part in parts} == {-(-5 // batch_size)}
    for part, places in zip(parts, held, strict=True):
        assert {len(batch["mask"]) for batch in part} == {len(places)}
    order = whole(parts, held)
    joined = {name: np.concatenate([batch[name] for batch in order]) for name in order[0]}
    padding = len(joined["mask"]) - 5
    assert joined["mask"].tolist() == [1.0] * 5 + [0.0] * padding
    assert joined["index"].tolist() == [0, 1, 2, 3, 4] + [-1] * padding
    np.testing.assert_array_equal(joined["labels"][:5], dataset.labels("test"))
    for row in range(5):
        np.testing.assert_array_equal(joined["inputs"][row], dataset.image("test", row))
    assert not joined["inputs"][5:].any()


def test_multilabel_batches(tmp_path):
    rows = [f"{i}.png,{i % 2},{i % 3 / 2}" for i in range(20)]
    table = write_csv(tmp_path, "path,x,y", rows)
    spec = csv_spec("mine", label_columns=("x", "y"), channels=1)
    ours = prepare(spec, table, tmp_path / "data", size=11)
    batch = take(ours, 1)[0]
    assert batch["inputs"].shape == (BATCH, 11, 11, 1)
    assert (batch["labels"].shape, batch["labels"].dtype) == ((BATCH, 2), np.float32)
    np.testing.assert_array_equal(batch["labels"], ours.labels("train")[batch["index"]])
    padded = next(eval_batches(ours, "val", batch_size=7))
    assert (padded["labels"].shape, padded["labels"].dtype) == ((7, 2), np.float32)
    assert not padded["labels"][padded["mask"] == 0].any()


def test_wrong_arguments_are_refused(dataset):
    with pytest.raises(UsageError, match="batch size 0: expected 1 or more"):
        take(dataset, 1, batch_size=0)
    with pytest.raises(UsageError, match="batch size 0"):
        eval_batches(dataset, "val", batch_size=0)
    with pytest.raises(UsageError, match="seed -1: expected 0 to"):
        take(dataset, 1, seed=-1)
    with pytest.raises(UsageError, match="unknown split 'valid'"):
        eval_batches(dataset, "valid", batch_size=2)


class RecordedSplit:
    def __init__(self, split, rows):
        self.split, self.rows = split, rows

    def __len__(self):
        return len(self.split)

    def __getitem__(self, row):
        self.rows.append(row)
        return self.split[row]


@pytest.fixture
def reads(monkeypatch):
    """Rows in the order in which they are read from disk."""
    rows, split = [], PreparedDataset.split
    monkeypatch.setattr(
        PreparedDataset, "split", lambda self, name: RecordedSplit(split(self, name), rows)
    )
    return rows


def test_a_small_split_is_read_once_and_a_large_one_in_every_pass(dataset, reads, monkeypatch):
    take(dataset, 11)  # 4 passes of 22
    assert sorted(reads) == list(range(22))
    reads.clear()
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 22 * 13 * 13 * 3 - 1)
    take(dataset, 11)
    assert np.bincount(reads).min() >= 4


@pytest.mark.parametrize(("batches", "ahead"), [(0, 2), (3, 3), (99, 7)])
def test_what_is_read_ahead_is_bounded(dataset, reads, monkeypatch, batches, ahead):
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(loader, "READ_AHEAD_BYTES", batches * BATCH * 13 * 13 * 3)
    reader = train_batches(dataset, batch_size=BATCH, seed=SEED, threads=7)
    next(reader)
    deadline = time.monotonic() + 20
    while len(reads) < BATCH * (1 + ahead) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # for what should not come
    assert len(reads) == BATCH * (1 + ahead)


@pytest.fixture(scope="module")
def damaged(dataset, tmp_path_factory):
    """A copy of the data set, its first file of training records, and the bytes they take."""
    folder = tmp_path_factory.mktemp("damaged") / dataset.folder.name
    shutil.copytree(dataset.folder, folder)
    file = min(folder.glob("*train.array_record*"))
    return folder, file, file.read_bytes().index(bytes(1000))  # blocks are filled up with zeros


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@properties
@given(data=st.data())
def test_a_flipped_bit_is_never_read_as_another_image(dataset, damaged, data):
    folder, file, length = damaged
    whole = file.read_bytes()
    file.write_bytes(flipped(whole, data.draw(st.integers(0, 8 * length - 1))))
    try:
        split, good = open_folder(folder).split("train"), dataset.split("train")
        for row in range(22):
            try:
                image, label = split[row]
            except UserError as error:
                assert f"row {row} of train" in str(error)  # noqa: PT017
            else:
                np.testing.assert_array_equal(image, good[row][0])
                assert label == good[row][1]
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_is_named_and_ends_the_batches(dataset, damaged, workers):
    folder, file, length = damaged
    whole = file.read_bytes()
    file.write_bytes(flipped(whole, 4 * length))
    batches = train_batches(
        open_folder(folder), batch_size=BATCH, seed=SEED, threads=1, workers=workers
    )
    message = r"row (\d+) of train \('eye\d+', in aptos2019-train"
    try:
        with pytest.raises(UserError, match=message) as caught:
            list(itertools.islice(batches, 4))  # the first pass
    finally:
        file.write_bytes(whole)
    row = int(str(caught.value).split("row ")[1].split()[0])
    assert repr(dataset.ids("train")[row]) in str(caught.value)
    assert "prepare it again" in str(caught.value)
    with pytest.raises(StopIteration):
        next(batches)


def workers_alive():
    return [child for child in multiprocessing.active_children() if "grain" in child.name]


def test_a_killed_worker_is_an_error_that_names_the_missing_batch(dataset):
    batches = train_batches(dataset, batch_size=BATCH, seed=SEED, threads=1, workers=2)
    got = [next(batches)["index"].tolist() for _ in range(2)]
    os.kill(workers_alive()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"exit code -9") as caught:
        got.extend(batch["index"].tolist() for batch in itertools.islice(batches, 50))
    assert got == [batch["index"].tolist() for batch in take(dataset, len(got))]  # none is skipped
    first = batch_ids(dataset, SEED, len(got), BATCH)[0]
    assert f"batch of step {len(got) + 1} was read ({first}, " in str(caught.value)
    assert not workers_alive()
    with pytest.raises(StopIteration):
        next(batches)


PROGRAM = """
import sys
from pathlib import Path
from fmi_jax.data.loader import train_batches
from fmi_jax.data.prepared import open_folder

if __name__ == "__main__":
    batches = train_batches(open_folder(Path(sys.argv[1])), batch_size=8, seed=0, workers=2)
    next(batches)
    print("ready", flush=True)
    sys.stdin.read()
"""


def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry))
    return found


def test_workers_end_with_the_trainer_even_when_it_is_killed(dataset, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, program, dataset.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)  # returns only when nobody holds the pipes any more
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the trainer"
        time.sleep(0.05)


def test_classes_are_drawn_equally_often_as_a_function_of_seed_and_position():
    labels = np.array([0] * 31 + [1] * 5 + [3])
    strata = [np.flatnonzero(labels == each) for each in np.unique(labels)]
    size = 600
    whole = loader.batch_rows(len(labels), 5, 2, size, np.arange(size), strata)
    shares = np.bincount(labels[whole], minlength=4) / size
    np.testing.assert_allclose(shares[[0, 1, 3]], 1 / 3, atol=0.06)  # 3 standard deviations
    assert {*whole[labels[whole] == 1]} == {*strata[1]}
    # A process reads its places, a resumed run begins at its step, and a batch is cut as it likes.
    places = np.array([7, 3, 599])
    part = loader.batch_rows(len(labels), 5, 2, size, places, strata)
    np.testing.assert_array_equal(part, whole[places])
    halves = [loader.batch_rows(37, 5, step, size // 2, np.arange(300), strata) for step in (4, 5)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    assert (loader.batch_rows(37, 6, 2, size, np.arange(size), strata) != whole).any()
