"""The reproduction map: the committed page is what the registered studies make."""

import re
from pathlib import Path

import pytest

from fmi_jax.study import reproduction
from fmi_jax.study.plan import make_plan
from fmi_jax.study.published import PUBLICATIONS, rows
from fmi_jax.study.registry import STUDIES

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reproduction.md"
_HOURS = re.compile(r"\| [\d,.e+]+ h \|")


def test_the_page_is_what_the_command_writes_but_for_the_hours() -> None:
    """`fmi-jax study map > docs/reproduction.md` after a study has changed."""
    written = PAGE.read_text(encoding="utf-8")
    made = reproduction.page(lambda plan: 1.0) + "\n"
    assert _HOURS.sub("| h |", written) == _HOURS.sub("| h |", made)
    for name, study in STUDIES.items():
        assert study.publication in PUBLICATIONS or name.startswith("example"), name
        assert (f"`fmi-jax study run {name}`" in written) is bool(study.publication)
    places = ("Table 1", "Table 2", "Table 3", "Tables B.1 and B.2", "Figure A.1", "Figure 8")
    for place in places:
        assert f"| {place} |" in written
    assert {row["table"].partition("_")[0] for row in rows()} == {*PUBLICATIONS}
    assert {*reproduction.UNCOVERED} == {*PUBLICATIONS}


def test_hours_are_those_of_the_page_for_a_study_of_one_network() -> None:
    """A ResNet-50 trains at 24.5 GFLOP an image of 224 pixels: three times its forward pass."""
    plan = make_plan(STUDIES["transfer_domain"])
    hours = reproduction.hours(plan)
    assert f"| {hours:,.0f} h |" in PAGE.read_text(encoding="utf-8")
    train, epochs, findings = 75_312 + 201_308, reproduction.EPOCHS, 10 * 4
    expected = train * epochs * findings * 3 * 8.2e9 / (reproduction.TFLOPS * 1e12) / 3600
    assert 0.95 * expected < hours < 1.3 * expected


@pytest.mark.slow
def test_the_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == reproduction.page() + "\n"
