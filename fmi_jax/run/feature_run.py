"""The run of a protocol that judges frozen features: computed once and kept, then judged."""

from pathlib import Path

from fmi_jax.artifacts.result import Best, Result
from fmi_jax.protocols.spec import FeatureProtocolSpec
from fmi_jax.run.conclusion import conclude
from fmi_jax.run.features import extract
from fmi_jax.run.network import begun
from fmi_jax.run.session import Session


def judge(session: Session) -> Result:
    """Compute the features that are not kept yet, judge them, and report.

    Features are kept in `features` under `config.data.data_dir`, for all runs that read the same.

    Raises:
      UserError: the weights or the data are damaged, or the config does not fit the data.
    """
    config, info, protocol = session.config, session.info, session.protocol
    assert isinstance(protocol, FeatureProtocolSpec)

    def say(line: str) -> None:
        if session.active:
            print(line)

    say(session.heading())
    splits = extract(
        begun(session.assembly, config, session.origin, session.mesh),
        session.dataset,
        Path(config.data.data_dir) / "features",
        mesh=session.mesh,
        say=say,
    )
    session.clock.lap("features")
    judgement = protocol.judge(splits, config, info)
    session.clock.lap("judging")
    value = session.task.evaluate(judgement.val).values[session.metric]
    spent = session.clock.laps["features"] + session.clock.laps["judging"]
    return conclude(
        session,
        best=Best(metric=session.metric, value=value, step=0, epoch=0.0, seconds=spent),
        steps=0,
        val=judgement.val,
        test=judgement.test,
        seconds={},
        details=judgement.details,
        notes=judgement.notes,
    )
