"""Strict reading of CSV tables: every row has every column, or an error says where not."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fmi_jax.data.raw.problems import Problems
from fmi_jax.errors import UserError


class TableRow(NamedTuple):
    """One row: the line it ends on (1-based, counting the header) and its fields by column."""

    line: int
    fields: dict[str, str]

    def kept(self, names: Mapping[str, str]) -> dict[str, str]:
        """Fields of the columns in `names`, which gives each its new name."""
        return {names[column]: field for column, field in self.fields.items() if column in names}


def read_table(path: Path, required: Sequence[str]) -> tuple[list[str], list[TableRow]]:
    """The columns and rows of a comma-separated UTF-8 file with a header line.

    A byte-order mark, any line ends and blank lines are allowed; blanks around a field are removed.

    Args:
      path: path of the file.
      required: columns that must be there; others may be.

    Raises:
      UserError: there is no such file, it is not UTF-8, its quoting is bad, it has no rows, a
        column is missing or occurs twice, or a row has more or fewer fields than the header.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; expected a CSV table.{_tables_beside(path)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x});"
            " save it as a CSV with UTF-8 encoding."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        records = [(reader.line_num, record) for record in reader if record]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}.") from None
    if not records:
        raise UserError(f"{path} is empty; expected a header line with {_quoted(required)}.")
    columns = [name.strip() for name in records[0][1]]
    if missing := [name for name in required if name not in columns]:
        raise UserError(
            f"{path} has no column {_quoted(missing)}; its columns are {_quoted(columns)}"
            " (comma-separated, with a header line, is expected)."
        )
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise UserError(f"{path} has the column {_quoted(twice)} more than once.")
    if len(records) == 1:
        raise UserError(f"{path} has a header but no rows.")
    problems = Problems(path)
    problems.add(
        f"row without exactly {len(columns)} fields",
        *(f"row {line} has {len(r)}" for line, r in records[1:] if len(r) != len(columns)),
    )
    problems.raise_if_any()
    return columns, [
        TableRow(line, dict(zip(columns, map(str.strip, record), strict=True)))
        for line, record in records[1:]
    ]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _tables_beside(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist."
    tables = sorted(entry.name for entry in folder.glob("*.csv"))
    return f" {folder} holds {', '.join(tables[:5])}." if tables else f" {folder} holds none."
