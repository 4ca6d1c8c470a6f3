"""Every protocol and every pair without a name through all that a user does with it, on tiny data.

A run, stopped and resumed; its result and its page; a cell of a study; the study's report. The
protocols, adaptations and heads are those of the registries: a new one is in here without being
named.
"""

import copy
import csv
import dataclasses
import json
from pathlib import Path
from unittest import mock

import pytest
import short_runs

from fmi_jax import cli
from fmi_jax.artifacts.result import FORMAT
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.fields import as_dict, set_fields
from fmi_jax.protocols.registry import ADAPTS, FREE, HEADS, PAIRS, PROTOCOLS, protocol_of
from fmi_jax.run import experiment
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import Plan, make_plan
from fmi_jax.study.spec import Setting, Study
from fmi_jax.study.state import State
from fmi_jax.tasks.registry import TASKS
from fmi_jax.training.interrupt import Stopped, StopRequest

NAMED = {head for _, head in PAIRS.values()}
OTHERS = [head for head in HEADS if head not in NAMED]
UNNAMED = {
    f"{adapt}+{head}": {"protocol": FREE, "adapt": adapt, "head": head}
    for i, adapt in enumerate(ADAPTS)
    for head in HEADS
    if (adapt, head) not in PAIRS.values()
    and (HEADS[head].heads is None or ADAPTS[adapt].frozen)
    # A head without any name is taken with one adaptation, the next head with the next.
    and (head in NAMED or OTHERS.index(head) % len(ADAPTS) == i)
}
CASES = {name: {"protocol": name} for name in PROTOCOLS} | UNNAMED
SPECS = {
    name: protocol_of(dataclasses.replace(ExperimentConfig(), **fields))
    for name, fields in CASES.items()
}


MASKED = {Label.MAP: "masked", Label.LAYERS: "layered"}
# Of the heads for several forms of masks each takes another.
FORMS = {
    name: spec.parts[0].labels[i % len(spec.parts[0].labels)]
    for i, (name, spec) in enumerate(
        (name, spec) for name, spec in SPECS.items() if Label.INDEX not in spec.parts[0].labels
    )
}


def config_of(protocol: str, squares: ExperimentConfig) -> ExperimentConfig:
    config = dataclasses.replace(copy.deepcopy(squares), **CASES[protocol])
    spec = SPECS[protocol]
    if Label.INDEX not in spec.parts[0].labels:
        config.data.name = MASKED[FORMS[protocol]]
    config.backbone.last_block = 1
    set_fields(config, spec.small)
    if "optim.learning_rate" in spec.unread:
        config.optim.learning_rate = ExperimentConfig().optim.learning_rate
    return config


def study_of(squares: ExperimentConfig) -> Study:
    """Every protocol; one that follows a run looks at the first that trains."""
    first = next(name for name, spec in SPECS.items() if spec.trains)

    def setting(protocol: str) -> Setting:
        return Setting(
            at={"dataset": config_of(protocol, squares).data.name, "model": protocol},
            config=config_of(protocol, squares),
            after=setting(first) if SPECS[protocol].own.after else None,
        )

    return Study(
        name="presets",
        title="Every protocol",
        settings=lambda: tuple(map(setting, SPECS)),
        rows=("model",),
        rates=(),
        seeds=1,
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    squares = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    for form in {*FORMS.values()}:
        make = {Label.MAP: short_runs.prepare_masked, Label.LAYERS: short_runs.prepare_layered}
        make[form](Path(squares.data.data_dir))
    return make_plan(study_of(squares))


def run_cell(ledger: Ledger, plan: Plan, setting: Setting) -> Path:
    """Run the one cell of a setting as a driver's process does, stopped half-way if it trains."""
    [cell] = plan.candidates(setting)
    claim = ledger.claim(cell)
    assert claim is not None
    config = short_runs.config_of_cell(claim.folder)
    if protocol_of(config).trains:
        stop = mock.patch.object(StopRequest, "requested", lambda self, step: step == 3)
        with stop, pytest.raises(Stopped):
            experiment.run(config, claim.folder)
        assert ledger.state(cell.id) is State.RUNNING
    experiment.run(config, claim.folder)
    claim.release()
    assert ledger.state(cell.id) is State.DONE
    return claim.folder


def test_every_protocol_runs_resumes_and_is_reported(plan: Plan, tmp_path: Path, capsys) -> None:
    ledger = Ledger(tmp_path)
    for setting in plan.settings:
        assert setting.config is not None
        protocol = setting.at["model"]
        spec, folder = SPECS[protocol], run_cell(ledger, plan, setting)
        said = capsys.readouterr().out
        assert ("resuming at step 3" in said) == spec.trains, protocol
        result = json.loads((folder / "result.json").read_text())
        assert result["format"] == FORMAT
        assert result["unread"] == spec.unread
        assert result["config"] == as_dict(short_runs.config_of_cell(folder))
        (finding,) = result["findings"]
        assert finding["judge"] == CASES[protocol]["protocol"]
        parts = ("", "") if spec.fit is None else (spec.fit.adapt, spec.fit.head)
        assert (result["adapt"], result["head"]) == parts, protocol
        assert bool(finding["evaluations"]) == (spec.own.shows == "score"), protocol
        kept = TASKS[result["dataset"]["task"]].file
        assert (folder / kept).exists() == (spec.own.shows == "score"), protocol
        assert b"</html>" in (folder / "report.html").read_bytes()
        written = (folder / "result.json").stat().st_mtime_ns
        experiment.run(short_runs.config_of_cell(folder), folder)  # finished: it is announced
        assert (folder / "result.json").stat().st_mtime_ns == written
    plan.write(tmp_path)
    assert cli.main(["report", "--root", str(tmp_path)]) == 0
    with (tmp_path / "report" / "numbers.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    for protocol, spec in SPECS.items():
        assert rows[protocol]["status"] == "done", rows[protocol]
        shown = spec.own.shows == "score" or bool(spec.own.label)
        assert bool(rows[protocol]["metric"]) == bool(rows[protocol]["mean"]) == shown, protocol
