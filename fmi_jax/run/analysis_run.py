"""The run of an analysis: it measures, and what it found is written beside its figures."""

import dataclasses
import json
from typing import Any

from fmi_jax import atomic
from fmi_jax import config as config_module
from fmi_jax.artifacts.result import FILE_NAME as RESULT
from fmi_jax.artifacts.result import FORMAT
from fmi_jax.protocols.spec import AnalysisContext, AnalysisResult, AnalysisSpec
from fmi_jax.report.analysis import FILE_NAME as REPORT
from fmi_jax.report.analysis import write_analysis_report
from fmi_jax.run import network, runtime
from fmi_jax.run.conclusion import describe_backbone
from fmi_jax.run.session import Session, now


def analyse(session: Session) -> dict[str, Any]:
    """Measure and write `result.json` (its "kind" is the protocol's name) and `report.html`.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: whatever the analysis finds wrong.
    """
    spec = session.protocol
    assert isinstance(spec, AnalysisSpec)
    if session.active:
        print(session.heading())
    found = spec.run(
        AnalysisContext(
            config=session.config,
            workdir=session.workdir,
            dataset=session.dataset,
            mesh=session.mesh,
            build=lambda config: network.pretrained(config, session.info, session.mesh),
            trained=lambda workdir: network.finished(workdir, session.mesh),
            started=lambda workdir: network.started(workdir, session.info, session.mesh),
        )
    )
    session.clock.lap(spec.name)
    values = _document(session, spec, found)
    if session.active:
        text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
        atomic.write_bytes(session.workdir / RESULT, (text + "\n").encode())
        write_analysis_report(session.workdir)
        print(found.text)
        print(f"report: {session.workdir / REPORT}")
    return values


def _document(session: Session, spec: AnalysisSpec, found: AnalysisResult) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": spec.name,
        "summary": spec.summary,
        "title": found.title,
        "config": config_module.as_dict(session.config),
        "backbone": describe_backbone(session),
        "dataset": session.record.dataset,
        "values": found.values,
        "text": found.text,
        "headline": None if found.headline is None else dataclasses.asdict(found.headline),
        "speeds": [dataclasses.asdict(speed) for speed in found.speeds],
        "unread": spec.unread,
        "figures": dict(found.figures),
        "notes": [*session.origin.notes, *found.notes],
        "seconds": session.clock.laps,
        "device": runtime.device(),
        "versions": runtime.versions(),
        "started": session.record.started,
        "finished": now(),
    }
