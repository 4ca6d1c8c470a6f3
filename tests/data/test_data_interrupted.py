"""Preparation by several processes, and what is left when something ends it early."""

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import held_images
import pytest
from prepared_sets import contents, note_reads
from raw_sets import write_aptos

from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.preparing import pool, reading
from fmi_jax.data.preparing.prepare import prepare, prepare_sizes
from fmi_jax.data.preparing.selection import Row
from fmi_jax.data.raw.spec import RawExample
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError, UserError

APTOS = DATASETS["aptos2019"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_aptos(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    return prepare(APTOS, raw, tmp_path_factory.mktemp("data"), size=13)


@pytest.fixture
def read(monkeypatch):
    return note_reads(monkeypatch)


def test_the_bytes_do_not_depend_on_the_number_of_processes(raw, prepared, tmp_path):
    ours = prepare(APTOS, raw, tmp_path, size=13, processes=2)
    assert contents(ours.folder) == contents(prepared.folder)


def test_after_a_bad_image_is_mended_the_others_are_not_read_again(tmp_path, prepared, read):
    raw, data = write_aptos(tmp_path / "raw"), tmp_path / "data"
    path = raw / "train_images" / f"{prepared.ids('val')[1]}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="need not be prepared again"):
        prepare(APTOS, raw, data, size=13)
    path.write_bytes(whole)
    read.clear()
    ours = prepare(APTOS, raw, data, size=13)
    assert read == prepared.ids("val")  # the images of one shard
    assert contents(ours.folder) == contents(prepared.folder)


def test_a_full_disk_is_an_error_and_leaves_nothing_that_is_used(raw, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*aptos2019: .*File too large"):
            prepare(APTOS, raw, tmp_path, size=13)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == {}


def test_workers_do_without_jax():
    program = "import sys, fmi_jax.data.preparing.reading; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


PROGRAM = """
import sys
from pathlib import Path
import held_images
from fmi_jax.data.preparing import build
from fmi_jax.data.preparing.prepare import prepare_sizes
from fmi_jax.data.registry import DATASETS
build.write_shards = held_images.write_shards
raw, data = map(Path, sys.argv[1:])
for dataset in prepare_sizes(
    DATASETS["aptos2019"], raw, data, sizes=(13, 17), on_bad="quarantine", processes=2
):
    print(dataset.info.split_sha256)
"""


def start(raw: Path, data: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(raw), str(data)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def slow(tmp_path, prepared):
    """Raw data, and a pipe at which reading an image stops until somebody opens it for writing."""
    raw = write_aptos(tmp_path / "raw")
    return raw, held_images.hold(raw / "train_images" / f"{prepared.ids('train')[2]}.png")


def test_a_killed_run_leaves_nothing_that_is_used_and_is_taken_up(slow, prepared, tmp_path, read):
    raw, pipe = slow
    data = tmp_path / "data"
    process = start(raw, data)
    partial = data / "aptos2019" / ".17-upstream.partial"
    with pipe.open("wb"):  # a worker is at work on it
        wait_for(lambda: len(list(partial.glob("*.json"))) == 3)  # of four shards
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process.communicate()  # the worker that is left can end
    with pytest.raises(UsageError, match="Prepared there: none"):
        open_dataset(data, "aptos2019", 13)

    pipe.unlink()
    small, large = prepare_sizes(APTOS, raw, data, sizes=(13, 17))
    assert read == prepared.ids("train")[:16]  # those of the unit that was not finished
    assert contents(small.folder) == contents(prepared.folder)
    straight = prepare(APTOS, raw, tmp_path / "straight", size=17)
    assert contents(large.folder) == contents(straight.folder)
    assert {path.name for path in small.folder.parent.iterdir()} == {
        *(".lock", ".13-upstream.stamps", ".17-upstream.stamps", "13-upstream", "17-upstream")
    }


def test_two_at_once_do_no_harm(slow, tmp_path):
    raw, pipe = slow
    data = tmp_path / "data"
    first = start(raw, data)
    with pipe.open("wb"):  # the first is at work on it
        pipe.unlink()  # the second, if it read it too, would not wait
        second = start(raw, data)
        assert "Waiting for another process" in second.stderr.readline()
    outputs = [process.communicate(timeout=100) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert open_dataset(data, "aptos2019", 13).info.split_sha256 in outputs[0][0]
    assert not list(data.rglob("*.partial"))


def test_a_killed_worker_is_an_error_that_names_the_image(slow, monkeypatch):
    raw, pipe = slow
    processes, popen = [], subprocess.Popen

    def noting(*args, **options):
        processes.append(popen(*args, **options))
        return processes[-1]

    monkeypatch.setattr(pool.subprocess, "Popen", noting)
    scan = functools.partial(held_images.scan_rows, num_classes=5, channels=3)
    rows = [
        Row(
            RawExample(id=name, path=f"{name}.png", label=0, row=5),
            raw / "train_images" / f"{name}.png",
        )
        for name in ("eye000", pipe.stem)
    ]
    found = reading.read_images(scan, [rows], [rows], description="", processes=2)
    next(found)
    with pipe.open("wb"):  # the worker is at work on it
        processes[0].kill()
        with pytest.raises(
            UserError, match=rf"killed by SIGKILL\) while it read .*{pipe.stem}\.png"
        ):
            next(found)


def test_an_error_in_a_worker_is_raised_here_and_the_workers_end(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        list(pool.run_tasks(os.listdir, [str(tmp_path / "gone"), str(tmp_path)], 2))
    assert "In a worker process" in error.value.__notes__[0]
