import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fmi_jax.data.raw.split_lists import read_split_lists
from fmi_jax.errors import UserError

LISTS = {"train": "a.txt", "val": "b.txt", "test": "c.txt"}
IMAGES = ("x1.png", "x2.png", "x3.jpg", "x4.png")


def write(folder: Path, *texts: str) -> Path:
    for name, text in zip(LISTS.values(), texts, strict=False):
        (folder / name).write_bytes(text.encode())
    return folder


def test_names_are_found_whatever_follows_them_and_however_lines_end(tmp_path):
    write(tmp_path, "\ufeffx1.png 0 1\r\nx2,1\r\n\r\n", "images/x3.png\n", "x4.png")
    assert read_split_lists(tmp_path, LISTS, IMAGES) == {
        "x1.png": "train", "x2.png": "train", "x3.jpg": "val", "x4.png": "test"
    }  # fmt: skip


def test_without_any_list_there_is_no_split(tmp_path):
    assert read_split_lists(tmp_path, LISTS, IMAGES) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("x1", "x2"), r"has no c\.txt; expected all of a\.txt, b\.txt, c\.txt, or none of them"),
        (("x1", "", "x2"), r"b\.txt is empty"),
        (("x1", "x2\nx1", "x3"), r"listed twice \(1\): a\.txt line 1 \('x1'\) and b\.txt line 2"),
        (("x1", "x2\n\nx7.png", "x3"), r"not an image .*\(1\): b\.txt line 3 \('x7\.png'\)$"),
    ],
)
def test_lists_that_cannot_be_are_refused(tmp_path, texts, message):
    with pytest.raises(UserError, match=message):
        read_split_lists(write(tmp_path, *texts), LISTS, IMAGES)


def test_a_list_that_is_not_text_is_refused(tmp_path):
    write(tmp_path, "x1", "x2", "x3")
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8 text"):
        read_split_lists(tmp_path, LISTS, IMAGES)


@settings(max_examples=60)
@given(st.lists(st.text("x1234./, \t\n\0\u2028\\é", max_size=30), min_size=3, max_size=3))
def test_any_text_gives_a_split_of_known_images_or_one_error(texts):
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read_split_lists(write(Path(folder), *texts), LISTS, IMAGES)
        except UserError:
            return
    assert set(found) <= set(IMAGES)
    assert set(found.values()) == set(LISTS)
