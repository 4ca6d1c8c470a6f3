"""The run of a protocol that trains no network: its judge measures."""

from fmi_jax.artifacts.result import Best, Result
from fmi_jax.protocols.spec import JudgeSpec
from fmi_jax.run.conclusion import conclude
from fmi_jax.run.session import Session


def judge(session: Session) -> Result:
    """Let the judge of the protocol measure, and report.

    Raises:
      UserError: the weights or the data are damaged, or the config does not fit the data.
    """
    assert isinstance(session.protocol, JudgeSpec)
    session.say(session.heading())
    finding = session.protocol.judge(session)
    if "val" not in finding.evaluations:
        session.clock.lap(session.protocol.name)
        return conclude(session, finding=finding)
    value = finding.evaluations["val"].values[session.metric]
    spent = session.clock.laps["features"] + session.clock.laps["judging"]
    best = Best(metric=session.metric, value=value, step=0, epoch=0.0, seconds=spent)
    return conclude(session, finding=finding, best=best)
