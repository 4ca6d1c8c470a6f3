"""Seeds that are missing for the tests of a study, and the command that runs them."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmi_jax.drawing.wording import count, listed
from fmi_jax.settings import BackboneConfig, DataConfig
from fmi_jax.study.planned import PlannedStudy
from fmi_jax.study.report.comparisons import ENOUGH
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.table import Table
from fmi_jax.study.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreSeeds:
    """Numbers that were not tested for want of seeds.

    Attributes:
      sentence: numbers and their seeds, in words.
      command: command that runs the missing seeds.
    """

    sentence: str
    command: str


def more_seeds(
    study: PlannedStudy, table: Table, lacking: Sequence[Number], root: Path
) -> MoreSeeds | None:
    """Describe the seeds that `lacking` numbers need for a test; None if there are none.

    Args:
      study: study of the numbers.
      table: table that names the numbers.
      lacking: numbers with too few seeds.
      root: folder of the studies.
    """
    if not lacking:
        return None
    named = [
        f"{table.title(n)} on {n.setting.dataset} ({len(n.runs)} of {ENOUGH})" for n in lacking
    ]
    sentence = (
        f"Not tested, because a test needs {ENOUGH} seeds of whatever draws anything:"
        f" {count(len(lacking), 'number')}, {listed(named)}."
    )
    return MoreSeeds(sentence=sentence, command=shlex.join(_words(study, lacking, root)))


def _words(study: PlannedStudy, lacking: Sequence[Number], root: Path) -> Iterator[str]:
    yield from ("fmi-jax", "study", "run", study.name)
    yield from ("--seeds", str(max(ENOUGH, study.seeds)), "--root", str(root))
    if study.rates:
        yield from ("--rates", ",".join(map(repr, study.rates)))
    if study.product:
        yield "--product"
    for name, value in study.changed.items():
        yield from ("--set", f"{name}={value}")
    data, backbone = (lacking[0].result.config[name] for name in ("data", "backbone"))
    if (folder := data["data_dir"]) != DataConfig().data_dir:
        yield from ("--data-dir", folder)
    if (folder := backbone["weights_dir"]) != BackboneConfig().weights_dir:
        yield from ("--weights-dir", folder)
    for name in study.coordinates:
        wanted = dict.fromkeys(n.setting.at.get(name, "") for n in lacking)
        there = {value for s in study.settings if (value := s.at.get(name)) is not None}
        if {*wanted} < there and not any("," in value for value in wanted):
            yield from ("--slice", f"{name}={','.join(wanted)}")
    if any(outcome.state is State.FAILED for n in lacking for outcome in n.outcomes):
        yield "--retry-failed"
