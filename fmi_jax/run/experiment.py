"""One experiment from config to result: `run` begins it and hands it to its kind of protocol."""

from pathlib import Path

from fmi_jax.artifacts.record import owned
from fmi_jax.artifacts.result import FILE_NAME as RESULT
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig, validate
from fmi_jax.protocols.spec import ProtocolSpec
from fmi_jax.run import runtime, session
from fmi_jax.run.conclusion import announce
from fmi_jax.run.grid_run import train_grid
from fmi_jax.run.judging import judge
from fmi_jax.run.training_run import train


def run(config: ExperimentConfig, workdir: Path) -> Result:
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
            announce(begun, result)
            return result
        if not isinstance(begun.protocol, ProtocolSpec):
            return judge(begun)
        return train(begun) if begun.protocol.grid is None else train_grid(begun)
