"""Paths of a user: what is no file is refused unread, and results have a place before the work."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmi_jax import atomic
from fmi_jax.errors import UserError
from fmi_jax.paths import check_file, check_output, check_output_folder
from fmi_jax.run.predict import batches_of_files


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """What is no file, by kind."""
    places = {kind: tmp_path / f"{kind}.png" for kind in ("pipe", "folder", "loop", "nothing")}
    os.mkfifo(places["pipe"])
    places["folder"].mkdir()
    places["loop"].symlink_to(places["loop"])
    return places | {"device": Path("/dev/zero"), "long": tmp_path / ("n" * 300)}


def test_what_is_no_file_is_refused_unread(odd: dict[str, Path]) -> None:
    words = {
        "pipe": "is a pipe: expected a file",
        "folder": "is a folder: expected a file",
        "device": "is a device: expected a file",
        "loop": r"cannot be read \(Too many levels of symbolic links\)",
        "long": r"cannot be read \(File name too long\)",
        "nothing": "is missing: expected a file",
    }
    for kind, message in words.items():
        with pytest.raises(UserError, match=message):
            check_file(odd[kind])


def test_new_images_are_looked_at_before_the_first_is_decoded(
    odd: dict[str, Path], tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    good.touch()
    nothing: Any = None  # neither a data set nor a network is needed to say so
    for kind, message in (("pipe", "is a pipe"), ("device", "is a device")):
        with pytest.raises(UserError, match=message):
            next(batches_of_files([good, odd[kind]], nothing, 8, 2))


def test_an_output_replaces_neither_an_input_nor_what_it_did_not_write(
    odd: dict[str, Path], tmp_path: Path
) -> None:
    image, linked, table = (tmp_path / name for name in ("a.png", "b.png", "p.csv"))
    image.write_bytes(b"pixels")
    linked.hardlink_to(image)
    table.write_bytes(b"id,label\r\n")
    new = tmp_path / "new" / "deeper" / "p.csv"
    for path in (table, new):
        check_output(path, [image], begins=(b"id,",))
    assert not (tmp_path / "new").exists()
    for path in (image, linked, tmp_path / "pipe.png" / ".." / "a.png"):
        with pytest.raises(UserError, match="is one of the inputs: expected another file"):
            check_output(path, [image], begins=(b"id,",))
    with pytest.raises(UserError, match="holds something else, which is not replaced"):
        check_output(image, [], begins=(b"id,",))
    for kind in ("pipe", "folder", "device", "loop"):
        with pytest.raises(UserError, match=r"expected a new file, or one to replace"):
            check_output(odd[kind])
    with pytest.raises(UserError, match=r"nothing can be written .*Not a directory"):
        check_output(image / "p.csv")
    with pytest.raises(UserError, match=r"nothing can be written .*File name too long"):
        check_output(tmp_path / "new" / ("n" * 300))
    with pytest.raises(UserError, match=r"holds the input a\.png: expected another folder"):
        check_output_folder(tmp_path, [image])
    check_output_folder(tmp_path / "new" / "deeper", [image])
    assert image.read_bytes() == b"pixels"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.png", "b.png", "p.csv"),
        *("pipe.png", "folder.png", "loop.png"),
    }


def test_the_draft_of_a_killed_writer_is_gone_after_the_next(tmp_path: Path) -> None:
    program = """
import os, sys
from fmi_jax.atomic import whole_file
with whole_file(sys.argv[1]) as draft:
    draft.write_text("half of something long")
    os._exit(9)
"""
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert done.returncode == 9
    assert [left.name for left in tmp_path.iterdir()] == [".file.tmp"]
    with atomic.whole_file(path) as first, atomic.whole_file(path) as second:
        first.write_text("first")  # of two at once each has a draft
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_trial_of_a_place_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from fmi_jax.paths import check_output
Path.write_bytes = lambda *_: os._exit(9)
check_output(Path(sys.argv[1]))
"""
    path = tmp_path / "new" / "file"
    done = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert done.returncode == 9
    assert [left.name for left in tmp_path.iterdir()] == [".file~.tmp"]
    check_output(path)
    assert not [*tmp_path.iterdir()]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OSError, match="no regular file"):
        atomic.write_bytes("/dev/full", b"x")


def test_formulas_are_text_in_a_table_and_come_back_unchanged() -> None:
    odd = ["=1+1.png", "@SUM(A1)", "+cmd|'/c'!A1", "-x", "'=1", "''@a", "\tb", "'plain", "-", "="]
    numbers = ["-0.25", "+3", "-1e-07", "1", "-nan"]
    rows = [["id", "=class"], *([text, "x"] for text in odd), *([text, "x"] for text in numbers)]
    content = atomic.csv_bytes([*rows, [-2.5, -3]], end="\r\n").decode()
    found = [row[0] for row in csv.reader(content.splitlines())]
    assert not [text for text in found[1:-6] if text[0] in "=+-@\t" and len(text) > 1]
    assert found[-6:] == [*numbers, "-2.5"]
    lines = atomic.csv_lines(content.splitlines(keepends=True))
    assert [line["id"] for line in lines] == [*odd, *numbers, "-2.5"]
    assert {*lines[0]} == {"id", "=class"}
