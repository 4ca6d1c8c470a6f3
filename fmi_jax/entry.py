"""The command `run.py` or `fmi-jax run`: parse the flags, and run the experiment."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fmi_jax.arguments import check_plain
from fmi_jax.errors import UsageError, did_you_mean, unknown_name
from fmi_jax.flags import check_field

_CONFIG_HELP = (
    "A config by name or by file, with an optional argument: table1:arg, configs/x.py:arg."
    " Any field is overridden by --config.FIELD=VALUE, e.g."
    " --config.optim.learning_rate=3e-4."
)
_FIELD = re.compile(r"--?(no)?config\.")
_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "configs"  # where a wheel has them (setup.py)
_CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Names of the configs that come with fmi_jax."""
    return sorted(path.stem for path in _CONFIGS.glob("*.py"))


def locate(value: str) -> str:
    """Replace the name of a config by the path of its file; a path stays as it is.

    Args:
      value: `NAME`, `NAME:ARGUMENT`, `FILE.py` or `FILE.py:ARGUMENT`, as given to `--config`.

    Raises:
      UsageError: there is neither a config of that name nor a file at that path.
    """
    name, colon, argument = value.partition(":")
    if name in config_names():
        return f"{_CONFIGS / name}.py{colon}{argument}"
    if Path(name).is_file():
        return value
    kind = "file" if name.endswith(".py") or "/" in name else "config"
    raise UsageError(
        f"--config: there is no {kind} {name!r}.{did_you_mean(Path(name).stem, config_names())}"
        f" Valid: {', '.join(config_names())}, or a file of your own, FILE.py; either with"
        " :ARGUMENT."
    )


def run_main(argv: Sequence[str], default_config: Path | None) -> None:
    """Parse the flags of `run.py` or `fmi-jax run`, and run the experiment.

    Args:
      argv: command line, program name first.
      default_config: config file used without `--config`.
    """
    if any(argument in ("-h", "--help", "-help") for argument in argv[1:]):
        print(_help(argv[0], _other_flags()))
        return
    check_plain(argv)
    arguments = _located(argv)
    _check_syntax(arguments, has_default=default_config is not None)
    # Imported here: a mistake in the command line is reported without waiting for JAX.
    from fmi_jax.config import ExperimentConfig

    values = _other_flags()
    config_flags.DEFINE_config_file(
        "config",
        str(default_config) if default_config else None,
        _CONFIG_HELP,
        flag_values=values,
        sys_argv=arguments,
    )
    for argument in arguments[1:]:
        if argument.startswith("--config."):
            check_field(ExperimentConfig, argument.removeprefix("--config.").partition("=")[0])
    try:
        rest = values(arguments)
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # raised by the user's config file; the last line is the error
            text = f"--config: {text.strip().splitlines()[-1]}"
        raise UsageError(f"{text}.") from error
    except Exception as error:  # the user's config file may raise anything
        raise UsageError(f"--config: {type(error).__name__}: {error}") from error
    _check_rest(rest)
    if not isinstance(values.config, ExperimentConfig):
        raise UsageError(
            f"--config: get_config returned {type(values.config).__name__},"
            " expected a fmi_jax.config.ExperimentConfig."
        )
    from fmi_jax.run import experiment, launch, peers

    seconds = values.config.train.lost_after_seconds
    launch.start(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        lost_after_seconds=seconds,
    )
    with peers.watched(seconds):
        experiment.run(values.config, Path(values.workdir))


def _other_flags() -> flags.FlagValues:
    """Define every flag but `--config`."""
    values = flags.FlagValues()
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
        lower_bound=1, upper_bound=2**20, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "process_id", None, "Which process this is, from 0.", lower_bound=0, upper_bound=2**20,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _check_syntax(arguments: Sequence[str], *, has_default: bool) -> None:
    """Raise `UsageError` for what is wrong whatever the fields of a config are.

    Args:
      arguments: command line, program name first.
      has_default: True if there is a config without `--config`.
    """
    if any(argument.lstrip("-").startswith("flagfile") for argument in arguments[1:]):
        raise UsageError("--flagfile is not read: expected the fields in a config, FILE.py.")
    fields = [argument for argument in arguments[1:] if _FIELD.match(argument)]
    values = _other_flags()
    values.set_gnu_getopt()  # reads on after the value of `--config.FIELD VALUE`
    flags.DEFINE_string("config", None, _CONFIG_HELP, flag_values=values)
    try:
        rest = values([argument for argument in arguments if argument not in fields])
    except flags.UnrecognizedFlagError as error:
        raise unknown_name("flag", f"--{error.flagname}", [f"--{n}" for n in values]) from error
    except flags.Error as error:
        raise UsageError(f"{error}.") from error
    if all("=" in field for field in fields):
        _check_rest(rest)
    if not values.workdir:
        raise UsageError("--workdir is missing: expected the folder of the run.")
    if values.config is None and not has_default:
        raise UsageError("--config is missing: expected a name such as quickstart, or a file.")


def _check_rest(rest: Sequence[str]) -> None:
    """Refuse what is left of a command line when its flags are parsed, after the program name."""
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}: every option begins with --.")


def _located(argv: Sequence[str]) -> list[str]:
    """The command line with the name of a config replaced by the path of its file."""
    arguments = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            arguments[i] = f"--config={locate(value)}"
        elif i + 1 < len(argv):
            arguments[i + 1] = locate(argv[i + 1])
    return arguments


def _help(program: str, values: flags.FlagValues) -> str:
    flags.DEFINE_string("config", None, _CONFIG_HELP, flag_values=values)
    program = Path(program).name
    configs = textwrap.fill(", ".join(config_names()), initial_indent="  ",
                            subsequent_indent="  ")  # fmt: skip
    return (
        "Train and evaluate a backbone as a config describes it.\n\n"
        f"  {program} --config=quickstart --workdir=runs/quickstart\n"
        f"  {program} --config=configs/x.py --workdir=runs/x"
        " --config.optim.learning_rate=3e-4 --config.train.seed=1\n\n"
        f"Configs that have a name:\n{configs}\n\n"
        "The fields of a config, their defaults and what they mean:\n"
        "  fmi-jax protocols           names every protocol, adaptation, head and judge\n"
        "  fmi-jax protocols finetune  lists every field that one of them reads\n"
        + values.get_help()
    )
