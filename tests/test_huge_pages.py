"""Restarting with huge pages: once, with the same command line, and never against the user."""

import os
import subprocess
import sys

import pytest

from fmi_jax import huge_pages

PROGRAM = (
    "import os, sys; from fmi_jax.huge_pages import restart_with_huge_pages as restart; restart();"
    "print(sys.argv[1:], sys.flags.utf8_mode, os.environ.get('GLIBC_TUNABLES'))"
)


@pytest.mark.parametrize("of_the_user", [None, "glibc.malloc.check=0"])
def test_the_same_command_runs_once(of_the_user: str | None) -> None:
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if of_the_user is not None:
        env["GLIBC_TUNABLES"] = of_the_user
    command = [sys.executable, "-X", "utf8", "-c", PROGRAM, "a b", "--c=*"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    on_request = huge_pages._MODE.exists() and "[madvise]" in huge_pages._MODE.read_text()
    setting = of_the_user or (huge_pages._HUGE_PAGES if on_request else None)
    assert done.stdout == f"['a b', '--c=*'] 1 {setting}\n"
