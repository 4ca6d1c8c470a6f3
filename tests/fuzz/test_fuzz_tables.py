"""Tables of raw data, from parts that tables have: columns, cells, encodings, line ends."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from entering import assert_said
from hypothesis import given, settings, strategies as st
from PIL import Image

from fmi_jax.cli import main

COLUMNS = ("path", "label", "mask", "mask_a", "group", "split", "item", "a", "b", "", "\ufeffpath")
CELLS = st.one_of(
    st.sampled_from(
        [
            *("0.png", "1.png", "2.png", "mask.png", "missing.png", ".", "..", "/", "notes.txt"),
            *("0", "1", "2", "-1", "0.5", "nan", "inf", "1e400", "a", "b", "a|b", "|", "a|a"),
            *(
                "train",
                "val",
                "test",
                "",
                " ",
                '"',
                "=1+1",
                "\x1b[31m",
                "\0",
                "x" * 5000,
                "é",
                "e\u0301",
            ),
        ]
    ),
    st.text(max_size=5),
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(1)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (7, 5, 3), np.uint8)).save(folder / f"{i}.png")
    Image.fromarray(np.eye(7, 5, dtype=np.uint8)).save(folder / "mask.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


numbers = itertools.count()


@settings(max_examples=150)
@given(draw=st.data())
def test_a_table_is_read_or_refused(raw: Path, draw: st.DataObject) -> None:
    columns = draw.draw(st.lists(st.sampled_from(COLUMNS), min_size=0, max_size=5))
    columns = ["path", "label", *columns] if draw.draw(st.booleans()) else columns
    widths = st.integers(max(len(columns) - 1, 0), len(columns) + 1)
    rows = draw.draw(st.lists(widths.flatmap(lambda n: st.lists(CELLS, min_size=n, max_size=n)),
                              max_size=6))  # fmt: skip
    quote = draw.draw(st.sampled_from([quoted, str]))
    end = draw.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(",".join(map(quote, row)) for row in [columns, *rows])
    encoding = draw.draw(st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]))
    table = raw / f"table{next(numbers)}.csv"
    table.write_bytes(text.encode(encoding, errors="replace"))
    options = draw.draw(
        st.lists(
            st.sampled_from(
                [
                    *("--label-columns=a,b", "--classes=a,b", "--classes=0,1,2", "--channels=1"),
                    *("--ordinal", "--metric=accuracy", "--metric=dice", "--classes=a,a"),
                ]
            ),
            max_size=2,
        )
    )
    command = ["check-data", "csv", "--source", str(table), "--processes", "1", *options]
    assert_said(lambda: main(command))
    table.unlink()
