"""Entry points: parse flags, set exit codes, and print no traceback for a user's mistake.

Exit codes: 0 done, 1 failed, 2 wrong usage or config, 143 stopped on request after saving.
"""

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fmi_jax import config_files
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
    help_asked = any(argument in ("-h", "--help", "-help") for argument in argv[1:])
    arguments = list(argv) if help_asked else _located(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        str(default_config) if default_config else None,
        "A config by name or by file, with an optional argument: table1:arg, configs/x.py:arg."
        " Any field is overridden by --config.FIELD=VALUE, e.g."
        " --config.optim.learning_rate=3e-4.",
        flag_values=values,
        sys_argv=arguments,
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

    if help_asked:
        print(_help(argv[0], values))
        return
    for argument in arguments[1:]:
        if argument.startswith("--config."):
            check_field(argument.removeprefix("--config.").partition("=")[0])
    try:
        rest = values(arguments)
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
        raise UsageError("--config is missing: expected a name such as quickstart, or a file.")
    if not isinstance(values.config, ExperimentConfig):
        raise UsageError(
            f"--config: get_config returned {type(values.config).__name__},"
            " expected a fmi_jax.config.ExperimentConfig."
        )
    # Imported here: a wrong flag should be reported without waiting for JAX.
    from fmi_jax.run import experiment, launch

    launch.start(values.coordinator_address, values.num_processes, values.process_id)
    experiment.run(values.config, Path(values.workdir))


def _located(argv: Sequence[str]) -> list[str]:
    """The command line with the name of a config replaced by the path of its file."""
    arguments = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            arguments[i] = f"--config={config_files.locate(value)}"
        elif i + 1 < len(argv):
            arguments[i + 1] = config_files.locate(argv[i + 1])
    return arguments


def _help(program: str, values: flags.FlagValues) -> str:
    program = Path(program).name
    configs = textwrap.fill(", ".join(config_files.names()), initial_indent="  ",
                            subsequent_indent="  ")  # fmt: skip
    return (
        "Train and evaluate a backbone as a config describes it.\n\n"
        f"  {program} --config=quickstart --workdir=runs/quickstart\n"
        f"  {program} --config=configs/x.py --workdir=runs/x"
        " --config.optim.learning_rate=3e-4 --config.train.seed=1\n\n"
        f"Configs that have a name:\n{configs}\n\n"
        "The fields of a config and what they mean: fmi_jax/config.py.\n" + values.get_help()
    )
