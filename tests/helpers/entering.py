"""The property of every test in this folder: a message of ours, or success."""

import contextlib
import io
from collections.abc import Callable

from fmi_jax.errors import is_plain


def assert_said(call: Callable[[], int]) -> str:
    """Make a call as the command line does, and return what it says; no defect, one message."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call()
        except SystemExit as end:  # --help and --version
            code = end.code
    said = out.getvalue() + err.getvalue()
    assert code in (0, 1, 2), said
    assert "Traceback" not in said, said
    assert err.getvalue().count("error: ") == (code != 0), said
    assert all(is_plain(line.replace("\t", "")) for line in said.split("\n")), said
    return said
