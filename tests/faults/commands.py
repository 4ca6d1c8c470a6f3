"""Commands of the program, how each enters the campaign, or why it stays out."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

FRESH, HALF, DONE = "fresh", "half-done", "done"
"""Where a command begins: nothing of its own is there, it was killed half-way, or it has ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command as the campaign gives it, in a folder where all its paths are relative.

    Attributes:
      name: name in counts and in `--case`.
      command: registered name of the command.
      line: command line after Python itself.
      needs: files and folders that it reads, made by other scenarios or drawn.
      makes: files and folders that it writes.
      reads: patterns of files in which a flipped bit must be seen or must not matter.
      begins: states that it may begin in.
    """

    name: str
    command: str
    line: tuple[str, ...]
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    begins: tuple[str, ...] = (FRESH,)


CLI = ("-m", "fmi_jax.cli")
CONVERT = ("-m", "weights_convert")
WEIGHTS = "weights/deit_nano.tiny.safetensors"
DATA = ("data/squares/**/*.json", "data/squares/**/*.csv", "data/squares/**/*.array_record*")
RUN = ("run/run.json", "run/.result.json", "run/result.json", "run/checkpoints/**/*")
IMAGES = ("raw/red/001.png", "raw/blue/000.png", "raw/red/003.png")

SCENARIOS = (
    Scenario(
        name="draw",
        command="draw",
        line=(*CLI, "draw", "isic2019", "drawn", "--images", "20"),
        makes=("drawn",),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="prepare",
        command="prepare",
        line=(
            *(*CLI, "prepare", "folder", "--name", "squares", "--source", "raw"),
            *("--size", "16", "--data-dir", "data", "--processes", "2"),
        ),
        needs=("raw",),
        makes=("data/squares",),
        reads=("data/squares/**/*", "data/squares/.*.partial/**/*"),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="convert",
        command="weights_convert",
        line=(
            *(*CONVERT, "deit_nano", "--checkpoint", "source.safetensors"),
            *("--out", "weights", "--tag", "tiny"),
        ),
        needs=("source.safetensors",),
        makes=("weights",),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="export",
        command="weights_convert",
        line=(
            *(*CONVERT, "deit_nano", "--checkpoint", WEIGHTS),
            *("--export", "timm", "--out", "exported"),
        ),
        needs=("weights",),
        makes=("exported",),
        reads=(WEIGHTS,),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="verify",
        command="weights_convert verify",
        line=(*CONVERT, "verify", WEIGHTS),
        needs=("weights",),
        reads=(WEIGHTS,),
    ),
    Scenario(
        name="train",
        command="run",
        line=(str(ROOT / "run.py"), "--config=squares.py", "--workdir=run"),
        needs=("squares.py", "data/squares", "weights"),
        makes=("run",),
        reads=(*DATA, WEIGHTS, *RUN),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="predict",
        command="predict",
        line=(
            *(*CLI, "predict", "--workdir", "run", "--out", "new.csv"),
            *("--saliency", "seen", *IMAGES),
        ),
        needs=("raw", "run", "weights"),
        makes=("new.csv", "seen"),
        reads=(WEIGHTS, *RUN),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="evaluate",
        command="evaluate",
        line=(
            *(*CLI, "evaluate", "--workdir", "run", "--data", "squares", "--split", "val"),
            *("--out", "external"),
        ),
        needs=("data/squares", "run", "weights"),
        makes=("external",),
        reads=(*DATA, WEIGHTS, *RUN),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="study",
        command="study run",
        line=(
            *(*CLI, "study", "run", "study.py", "--root", "study", "--data-dir", "data"),
            *("--weights-dir", "weights", "--jobs", "2", "--retry-failed"),
        ),
        needs=("study.py", "squares.py", "data/squares", "weights"),
        makes=("study", "data/features"),
        reads=(*DATA, WEIGHTS, "study/**/*.json", "study/cells/*/checkpoints/**/*", "data/f*/**/*"),
        begins=(FRESH, HALF, DONE),
    ),
    Scenario(
        name="status",
        command="study status",
        line=(*CLI, "study", "status", "study.py", "--root", "study"),
        needs=("study.py", "squares.py", "study"),
        reads=("study/**/*.json",),
    ),
    Scenario(
        name="report",
        command="report",
        line=(*CLI, "report", "--root", "study", "--out", "report"),
        needs=("study",),
        makes=("report",),
        reads=("study/**/*.json",),
        begins=(FRESH, HALF, DONE),
    ),
)

LEFT_OUT = {
    "study list": "it reads and writes no file",
    "study map": "it reads and writes no file",
    "study plan": "it reads what `study status` reads, and writes nothing",
    "check-data": "it reads what `prepare` reads, and writes nothing",
    "protocols": "it reads and writes no file",
    "models": "it reads no content of a file, and writes none",
    "doctor": "it reads no content of a file, and writes none",
    "weights_convert inspect": "it reads what `verify` reads, and writes nothing",
}
"""Reason for each registered command that has no scenario."""

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def registered() -> set[str]:
    """Names of all commands that the program registers; subcommands in two words."""
    from fmi_jax.cli import make_parser
    from weights_convert.cli import COMMANDS

    return {
        *_leaves(make_parser()),
        "weights_convert",
        *(f"weights_convert {name}" for name in COMMANDS),
    }


def unaccounted() -> set[str]:
    """Registered commands with neither a scenario nor a reason, and those of the tables that are
    not registered."""
    return registered() ^ ({scenario.command for scenario in SCENARIOS} | set(LEFT_OUT))


def maker_of(path: str) -> Scenario | None:
    """Find the scenario that makes a path; None: it is drawn."""
    return next((scenario for scenario in SCENARIOS if path in scenario.makes), None)


def argv(scenario: Scenario) -> list[str]:
    """Make the whole command line, with Python."""
    return [sys.executable, *scenario.line]


def _leaves(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Names of the commands below a parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, each in action.choices.items():
            further = [*_leaves(each)]
            yield from [f"{name} {last}" for last in further] or [name]
