"""One experiment from config to result: data, a network that is trained or not, its judges."""

from pathlib import Path

from jax.experimental import multihost_utils

from fmi_jax.artifacts.record import owned
from fmi_jax.artifacts.result import FILE_NAME as RESULT, PENDING, Result
from fmi_jax.errors import on_disk
from fmi_jax.rules import validate
from fmi_jax.run import runtime, session
from fmi_jax.run.conclusion import conclude, finish
from fmi_jax.run.fit import fit
from fmi_jax.settings import BaseConfig


def run(config: BaseConfig, workdir: Path) -> Result:
    """Judge a backbone as `config` describes; everything it makes is in `workdir`.

    Called again with the same arguments it resumes a run that was cut short, and reports one
    that is finished.

    Raises:
      UserError: what the user can mend: the config, the data, the weights, a damaged run, the disk.
      Stopped: on SIGTERM, after saving.
    """
    validate(config)
    runtime.configure()
    with owned(workdir), on_disk(workdir):
        begun = session.begin(config, workdir)
        for name in (RESULT, PENDING):
            if (workdir / name).is_file():
                result = Result.read(workdir, name)
                multihost_utils.sync_global_devices("the result is read")  # before it is renamed
                if begun.active:
                    finish(begun, result)
                return result
        if begun.protocol.trains:
            begun = fit(begun)
        else:
            begun.say(begun.heading())
        return conclude(begun, [begun.judged(judge) for judge in begun.protocol.judges])
