"""Command lines and values of config fields, from words that mean something elsewhere in them."""

import argparse
import os
from pathlib import Path

import pytest
from entering import assert_said
from hypothesis import given, settings, strategies as st

from fmi_jax import cli
from fmi_jax.config import ExperimentConfig
from fmi_jax.entry import run_main
from fmi_jax.fields import field_names
from fmi_jax.guard import guarded

VALUES = st.sampled_from(
    [
        *("", "-", "--", "x", "0", "1", "-1", "1e9", "nan", "a,b", "a=b", "x.png", "table.csv"),
        *(".", "missing", "csv", "synthetic", "isic2019", "table1", "example", "deit_nano"),
        *("finetune", "test", "all", "\x1b[1m", "é", "a\nb", "x" * 300, "raw", "run", "\udce9"),
    ]
)


def flags() -> dict[str, list[str]]:
    """Every command of `fmi-jax`, and its flags."""
    found: dict[str, list[str]] = {"run": ["--config", "--workdir", "--num_processes"]}

    def note(parser: argparse.ArgumentParser, words: str) -> None:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for name, child in [pair for action in below for pair in action.choices.items()]:
            note(child, f"{words} {name}".strip())
        if not below and words != "run":
            found[words] = [flag for action in parser._actions for flag in action.option_strings]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            argparse.ArgumentParser,
            "parse_args",
            lambda parser, *_: note(parser, ""),
        )
        cli.parse([])
    return found


FLAGS = flags()
STARTS = ("study map", "study plan", "study run", "draw", "prepare")
"""Commands that have much to do after a sensible line: they get one that cannot be."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "raw").mkdir()
    (folder / "x.png").write_bytes(b"no image")
    (folder / "table.csv").write_text("path,label\nx.png,a\n")
    return folder


@settings(max_examples=100)
@given(draw=st.data())
def test_command_lines(home: Path, draw: st.DataObject) -> None:
    command = draw.draw(st.sampled_from([*FLAGS]))
    known = st.sampled_from(FLAGS[command])
    words = st.one_of(known, VALUES, st.tuples(known, VALUES).map("=".join))
    line = [*command.split(), *draw.draw(st.lists(words, max_size=6))]
    if command in STARTS:
        line += ["--no-such-flag"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert_said(lambda: cli.main(line))


CONFIG = """
from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    config = ExperimentConfig()
    config.data.name = "missing"
    return config
"""
TEXTS = st.one_of(
    VALUES,
    st.sampled_from(
        ["()", "(1,)", "(0.1,0.2)", "[1", "{}", "None", "True", "1e400", "-0.0", "1_000", "inf"]
    ),
    st.text(max_size=4),
)


@settings(max_examples=60)
@given(
    fields=st.dictionaries(
        st.sampled_from([n for n in field_names(ExperimentConfig) if n != "data.name"]),
        TEXTS,
        min_size=1,
        max_size=3,
    )
)
def test_values_of_config_fields(home: Path, fields: dict[str, str]) -> None:
    config = home / "config.py"
    config.write_text(CONFIG)
    line = ["run.py", f"--config={config}", f"--workdir={home / 'run'}"]
    line += [f"--config.{name}={text}" for name, text in fields.items()]
    assert os.environ.get("JAX_COORDINATOR_ADDRESS") is None
    said = assert_said(lambda: guarded(lambda: run_main(line, None)))
    assert "error: " in said  # there are no data of that name
