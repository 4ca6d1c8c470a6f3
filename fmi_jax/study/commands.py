"""The command `fmi-jax study`: plan, run and look at a study."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fmi_jax.arguments import place, positive, whole
from fmi_jax.errors import UsageError, UserError, on_disk, printable

if TYPE_CHECKING:  # importing it loads jax, which `--help` does not need
    from fmi_jax.study.driver import Driver
    from fmi_jax.study.plan import Plan
    from fmi_jax.study.spec import Setting

_DESCRIPTION = """\
Run a table or a figure of the paper, or a grid of your own, cell by cell.

A cell is one experiment in a process of its own, in the folder ROOT/cells/<cell>. Of every setting
(a number of a table, a point of a figure) each learning rate is tried with one seed, and the one
that is best on validation gets the other seeds. A command that was killed is typed again: finished
cells are not run twice, half-done ones go on from their checkpoints. Any number of these commands
may work on one ROOT at once, on one machine or many.
"""

_EXAMPLES = """\
examples:
  fmi-jax study list
  fmi-jax study plan table1 --slice dataset=aptos2019 --slice head=linear
  fmi-jax study run table1 --slice dataset=aptos2019,ddsm --gpus 0,1,2,3
  fmi-jax study run table1 --shard=2/8
  fmi-jax study run table1 --slurm-workers 8 --slurm partition=gpu --slurm gpus_per_node=1
  fmi-jax study run my_grid.py --seeds 2 --set train.epochs=20
  fmi-jax study status table1
  fmi-jax report table1
"""


def add_study_arguments(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add the subcommands of `fmi-jax study` to a parser."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=kind
    )
    _add(commands, "list", "name every study", _list)
    _add(commands, "map", "write every table and figure of the publications as Markdown", _map)
    plan = _add(commands, "plan", "say what a study takes, without running anything", _plan)
    _add_grid_arguments(plan)
    plan.add_argument(
        "--tflops",
        type=positive,
        metavar="T",
        help="sustained TFLOP/s to estimate time with; without it, those of finished cells",
    )
    run = _add(commands, "run", "run what is left of a study, or resume it", _run)
    _add_grid_arguments(run)
    run.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="cells at a time (default: %(default)s)",
    )
    run.add_argument(
        "--gpus", type=_list_of, default=[], metavar="0,1", help="one cell at a time on each"
    )
    run.add_argument(
        "--retry-failed", action="store_true", help="run cells again that failed before"
    )
    run.add_argument(
        "--slurm-workers",
        type=whole(0, 10_000),
        default=0,
        metavar="N",
        help="submit N jobs that share the work to Slurm and return (extra: slurm)",
    )
    run.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="of each job, as submitit has them: partition=gpu, gpus_per_node=1, timeout_min=1440",
    )
    _add_grid_arguments(_add(commands, "status", "show what is done, running, failed", _status))


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    summary: str,
    main: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
    parser.set_defaults(main=main)
    return parser


def _list_of(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(positive(part) for part in _list_of(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected numbers such as 1e-4,1e-3, not {text!r}"
        ) from None


def _add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study",
        metavar="STUDY",
        help="a name (`fmi-jax study list`), or a Python file with a STUDY",
    )
    parser.add_argument(
        "--root", type=place, default=Path("studies"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COORDINATE=VALUE[,VALUE]",
        help="only these settings: dataset=aptos2019, model=dinov2,sam ...; may be repeated",
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="only part I of N, for an array of jobs"
    )
    parser.add_argument("--rates", type=_rates, metavar="A,B", help="learning rates that are tried")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of the rate that is chosen")
    parser.add_argument(
        "--product", action="store_true", help="every learning rate with every seed"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a config field of every experiment: train.epochs=20; may be repeated",
    )
    parser.add_argument("--data-dir", default="data", help="prepared sets (default: %(default)s)")
    parser.add_argument(
        "--weights-dir", default="weights", help="converted weights (default: %(default)s)"
    )


def _pairs(flag: str, texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{flag} {text}: expected NAME=VALUE.")
        pairs[name] = value
    return pairs


def _planned(values: argparse.Namespace) -> "tuple[Plan, list[Setting]]":
    """Make the plan, and select the settings that the flags ask for."""
    from fmi_jax.study.plan import make_plan, select
    from fmi_jax.study.registry import find_study

    plan = make_plan(
        find_study(values.study),
        rates=values.rates,
        seeds=values.seeds,
        product=values.product,
        changed=_pairs("--set", values.set),
        free={"data.data_dir": values.data_dir, "backbone.weights_dir": values.weights_dir},
    )
    slices = {name: _list_of(text) for name, text in _pairs("--slice", values.slice).items()}
    index, _, count = values.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard={values.shard}: expected i/n, such as 2/8.")
    settings = select(plan.settings, slices, (int(index), int(count)))
    if not settings:
        raise UsageError(f"no setting of {plan.study.name} is in this slice and shard.")
    return plan, settings


def _list(_: argparse.Namespace) -> None:
    from fmi_jax.study.registry import STUDIES

    width = max(map(len, STUDIES)) + 2
    for study in STUDIES.values():
        print(f"{study.name:<{width}}{study.title}")


def _map(_: argparse.Namespace) -> None:
    from fmi_jax.study.reproduction import page

    print(page())


def _plan(values: argparse.Namespace) -> None:
    from fmi_jax.study.estimate import describe_plan
    from fmi_jax.study.ledger import Ledger

    plan, settings = _planned(values)
    print(describe_plan(plan, settings, Ledger(values.root), values.tflops))


def _run(values: argparse.Namespace) -> None:
    if values.slurm_workers:
        from fmi_jax.study.slurm import submit

        driver_of(values)  # reports faults of the study here, not in the jobs
        submit(values, values.slurm_workers, _pairs("--slurm", values.slurm))
        return
    if values.slurm:
        raise UsageError("--slurm without --slurm-workers: expected how many jobs to submit.")
    run_driver(driver_of(values), values)


def driver_of(values: argparse.Namespace) -> "Driver":
    """Make the driver that a command line asks for; writes the study into its folder."""
    from fmi_jax.study.driver import Driver, make_slots
    from fmi_jax.study.ledger import Ledger

    plan, settings = _planned(values)
    slots = make_slots(values.jobs, values.gpus)
    ledger = Ledger(values.root)
    with on_disk(values.root):
        plan.write(values.root)
    return Driver(plan, settings, ledger, slots, retry=values.retry_failed)


def run_driver(driver: "Driver", values: argparse.Namespace) -> None:
    """Run the cells and print the outcome.

    Raises:
      UserError: some cells could not be run.
      SystemExit: the driver was stopped; code 143.
    """
    with on_disk(values.root):
        outcome = driver.run()
    ledger = driver.ledger
    print(", ".join(f"{count} {state}" for state, count in outcome.counts.items() if count))
    for cell, reason in outcome.failures.items():
        print(f"failed: {cell}: {printable(reason)}\n  log: {ledger.folder(cell) / 'log.txt'}")
    lacking = [need for needs in outcome.not_ready.values() for need in needs]
    for need in dict.fromkeys(lacking):
        print(f"not ready ({lacking.count(need)} cells): {need}")
    if outcome.stopped:
        print("stopped; the same command resumes")
        raise SystemExit(143)
    report = f"fmi-jax report {driver.plan.study.name} --root {values.root}"
    if outcome.failures or outcome.not_ready:
        raise UserError(
            f"not every cell could be run. What there is: {report}. Failed cells are run again"
            " with --retry-failed."
        )
    print(f"report: {report}")


def _status(values: argparse.Namespace) -> None:
    from fmi_jax.study.progress import describe_status

    plan, settings = _planned(values)
    if not (values.root / "cells").is_dir():
        raise UsageError(f"{values.root} holds no study: expected the --root of fmi-jax study run.")
    print(describe_status(plan, settings, values.root))
