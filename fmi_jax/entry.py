"""Entry points: parse flags, set exit codes, and print no traceback for a user's mistake.

Exit codes: 0 done, 1 failed, 2 wrong usage or config, 143 stopped on request after saving.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError, UserError, unknown_name
from fmi_jax.flags import check_field


def guarded(main: Callable[[], None]) -> int:
    """Run `main`; a `UserError` becomes one message on stderr. Returns the exit code."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0


def run_main(argv: Sequence[str], default_config: Path | None) -> None:
    """Parse the flags of `run.py` or `fmi-jax run`, and run the experiment.

    Args:
      argv: command line, program name first.
      default_config: config file used without `--config`.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        str(default_config) if default_config else None,
        "Config file, with an optional argument: configs/x.py:arg. Any field is overridden by"
        " --config.FIELD=VALUE, e.g. --config.optim.learning_rate=3e-4.",
        flag_values=values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir", None, "Folder of the run: checkpoints, metrics, report. The same folder"
        " resumes a run that was cut short.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator_address", None, "host:port of process 0 of a run on several hosts; not needed"
        " where the cluster tells it (docs/launch.md).", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "num_processes", None, "Processes of a run on several hosts; 1: this one, alone.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("process_id", None, "Which process this is.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)

    if any(argument in ("-h", "--help", "-help") for argument in argv[1:]):
        print(_help(argv[0], values))
        return
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if argument.startswith("--config="):
            _check_file(argument.partition("=")[2])
        elif argument == "--config":
            _check_file(following)
        elif argument.startswith("--config."):
            check_field(argument.removeprefix("--config.").partition("=")[0])
    try:
        rest = values(list(argv))
    except flags.UnrecognizedFlagError as error:
        raise unknown_name("flag", f"--{error.flagname}", [f"--{n}" for n in values]) from error
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # raised by the user's config file; the last line is the error
            text = f"--config: {text.strip().splitlines()[-1]}"
        raise UsageError(f"{text}.") from error
    except Exception as error:  # the user's config file may raise anything
        raise UsageError(f"--config: {type(error).__name__}: {error}") from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: every option begins with --.")
    if values.workdir is None:
        raise UsageError("--workdir is missing: expected the folder of the run.")
    if values.config is None:
        raise UsageError("--config is missing: expected a file such as configs/quickstart.py.")
    if not isinstance(values.config, ExperimentConfig):
        raise UsageError(
            f"--config: get_config returned {type(values.config).__name__},"
            " expected a fmi_jax.config.ExperimentConfig."
        )
    # Imported here: a wrong flag should be reported without waiting for JAX.
    from fmi_jax.run import experiment, launch

    launch.start(values.coordinator_address, values.num_processes, values.process_id)
    experiment.run(values.config, Path(values.workdir))


def _check_file(config: str) -> None:
    path = config.partition(":")[0]
    if not Path(path).is_file():
        there = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UsageError(
            f"--config: there is no file {path!r}; expected FILE.py or FILE.py:ARGUMENT."
            + (f" Configs here: {', '.join(there)}." if there else "")
        )


def _help(program: str, values: flags.FlagValues) -> str:
    return (
        "Train and evaluate a backbone as a config describes it.\n\n"
        f"  {Path(program).name} --config=configs/quickstart.py --workdir=runs/quickstart\n"
        f"  {Path(program).name} --config=configs/x.py --workdir=runs/x"
        " --config.optim.learning_rate=3e-4 --config.train.seed=1\n\n"
        "The fields of a config and what they mean: fmi_jax/config.py.\n" + values.get_help()
    )
