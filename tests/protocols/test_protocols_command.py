"""`fmi-jax protocols`: what a run can be made of, and the config fields that each part reads."""

import dataclasses

import pytest

from fmi_jax.cli import main
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import flat, within
from fmi_jax.options import document
from fmi_jax.protocols.registry import ADAPTS, HEADS, JUDGES, PROTOCOLS
from fmi_jax.settings import BaseConfig

EVERYTHING = {**ADAPTS, **HEADS, **JUDGES, **PROTOCOLS}


def test_everything_is_listed_with_its_summary(capsys):
    assert main(["protocols"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.split("\n")]
    for registry in (PROTOCOLS, ADAPTS, HEADS, JUDGES):
        for name, part in registry.items():
            assert [name, part.summary] in lines


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_is_described_by_the_fields_that_it_reads(name, capsys):
    assert main(["protocols", name]) == 0
    said = capsys.readouterr().out
    heading, *lines = said.split("\n")
    assert heading.startswith(f"{name} (")
    assert heading.endswith(f": {EVERYTHING[name].summary}")
    assert max(map(len, lines)) <= 100
    shown = [line.split(" = ")[0].strip() for line in lines if " = " in line and line[2] != " "]
    assert len({*shown}) == len(shown)
    for field in flat(ExperimentConfig()):
        if name in PROTOCOLS:
            read = not within(field, PROTOCOLS[name].unread)
        else:
            read = within(field, EVERYTHING[name].reads)
        assert (field in shown) == read, field


def test_a_field_has_its_default_and_its_meaning(capsys):
    assert main(["protocols", "knn"]) == 0
    own, _, common = capsys.readouterr().out.partition("It also reads")
    default = ExperimentConfig().knn.temperature
    after = own.split(f"  knn.temperature = {default!r}\n")[1]
    assert document(type(ExperimentConfig().knn))["temperature"] == " ".join(after.split())
    assert "data.fraction = " in common


def test_what_does_not_exist_is_refused_with_what_does(capsys):
    assert main(["protocols", "knm"]) == 2
    assert "Did you mean 'knn'?" in capsys.readouterr().err
    assert main(["protocols", "zzz"]) == 2  # close to none: all are named, however many there are
    error = capsys.readouterr().err
    assert all(name in error for name in EVERYTHING)


def test_every_field_is_explained_once():
    default = ExperimentConfig()
    values = (getattr(default, field.name) for field in dataclasses.fields(default))
    for kind in (BaseConfig, *(type(value) for value in values if dataclasses.is_dataclass(value))):
        explained = [name for names in document(kind) for name in names.split(", ")]
        fields = [
            field.name
            for field in dataclasses.fields(kind)
            if not dataclasses.is_dataclass(field.default_factory)
        ]
        assert sorted(explained) == sorted(fields), kind
