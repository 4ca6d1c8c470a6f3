"""Registry of all studies by name, and studies of one's own by file."""

import runpy
from pathlib import Path

from fmi_jax.errors import UsageError
from fmi_jax.registry import Registry
from fmi_jax.study.grids import (
    example,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig7,
    fig8,
    figa1,
    in_domain,
    initial_weights,
    table3,
    tableb,
    tables12,
    transfer_architectures,
    transfer_domain,
    transfer_ssl,
)
from fmi_jax.study.spec import Study

STUDIES: Registry[Study] = Registry(
    "study",
    (
        tables12.TABLE1,
        tables12.TABLE2,
        table3.STUDY,
        tableb.STUDY,
        fig1.STUDY,
        fig2.STUDY,
        fig3.STUDY,
        fig4.STUDY,
        fig5.STUDY,
        fig6.STUDY,
        fig7.STUDY,
        fig8.STUDY,
        figa1.STUDY,
        initial_weights.STUDY,
        in_domain.STUDY,
        transfer_ssl.STUDY,
        transfer_domain.STUDY,
        transfer_architectures.STUDY,
        example.STUDY,
        example.SPEED,
    ),
)


def find_study(name: str) -> Study:
    """Find the study of that name, or the `STUDY` of the Python file at that path.

    Raises:
      UsageError: there is no such study.
    """
    if not name.endswith(".py"):
        return STUDIES[name]
    if not Path(name).is_file():
        raise UsageError(
            f"there is no file {name}: expected a Python file with a STUDY, or one of"
            f" {', '.join(STUDIES)}."
        )
    try:
        study = runpy.run_path(name, run_name=Path(name).stem).get("STUDY")
    except Exception as error:  # the user's file may raise anything
        raise UsageError(f"{name}: {type(error).__name__}: {error}") from error
    if not isinstance(study, Study):
        raise UsageError(f"{name}: expected a module-level STUDY, a fmi_jax.study.spec.Study.")
    return study
