"""Finds config files: those that come with fmi_jax by name, one's own by path."""

from pathlib import Path

from fmi_jax.errors import UsageError, did_you_mean

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "configs"  # where a wheel has them (setup.py)
_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Names of the configs that come with fmi_jax."""
    return sorted(path.stem for path in _FOLDER.glob("*.py"))


def locate(value: str) -> str:
    """Replace the name of a config by the path of its file; a path stays as it is.

    Args:
      value: `NAME`, `NAME:ARGUMENT`, `FILE.py` or `FILE.py:ARGUMENT`, as given to `--config`.

    Raises:
      UsageError: there is neither a config of that name nor a file at that path.
    """
    name, colon, argument = value.partition(":")
    if name in names():
        return f"{_FOLDER / name}.py{colon}{argument}"
    if Path(name).is_file():
        return value
    kind = "file" if name.endswith(".py") or "/" in name else "config"
    raise UsageError(
        f"--config: there is no {kind} {name!r}.{did_you_mean(Path(name).stem, names())}"
        f" Valid: {', '.join(names())}, or a file of your own, FILE.py; either with :ARGUMENT."
    )
