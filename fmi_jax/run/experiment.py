"""One experiment from config to result: data, a network that is trained or not, its judges."""

from pathlib import Path

from fmi_jax.artifacts.record import owned
from fmi_jax.artifacts.result import FILE_NAME as RESULT, Result
from fmi_jax.rules import validate
from fmi_jax.run import runtime, session
from fmi_jax.run.conclusion import announce, complete, conclude
from fmi_jax.run.fit import fit
from fmi_jax.settings import BaseConfig


def run(config: BaseConfig, workdir: Path) -> Result:
    """Judge a backbone as `config` describes; everything it makes is in `workdir`.

    Called again with the same arguments it resumes a run that was cut short, and reports one
    that is finished.

    Raises:
      UserError: what the user can mend: the config, the data, the weights, a damaged run.
      Stopped: on SIGTERM, after saving.
    """
    validate(config)
    runtime.configure()
    with owned(workdir):
        begun = session.begin(config, workdir)
        if (workdir / RESULT).is_file():
            result = Result.read(workdir)
            if begun.active:
                complete(begun, result)
                announce(begun, result)
            return result
        if begun.protocol.trains:
            begun = fit(begun)
        else:
            begun.say(begun.heading())
        return conclude(begun, [begun.judged(judge) for judge in begun.protocol.judges])
