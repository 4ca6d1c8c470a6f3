"""Files of earlier versions, as this one writes them; those of later ones are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmi_jax.errors import UserError

_OF_ANALYSES = {"cka": ("analysis", "CKA of the last layer"), "timing": ("speed", "")}
"""What a report showed of those that there were, and what it called their number."""

_SECTIONS = ("transformer", "probe_grid", "knn", "logistic", "lora", "attentive", "cka", "timing")
"""Those of a config that only some protocols read."""


def format_of(values: Mapping[str, Any], known: int, path: Path) -> int:
    """The format number of a file that is read; the first ones carried none.

    Args:
      values: of the file.
      known: the format that this version writes.
      path: the file.

    Raises:
      UserError: a later version wrote it.
    """
    number = values.get("format", 1)
    if number > known:
        raise UserError(
            f"{path} is of format {number}, and this version of fmi_jax reads up to {known}:"
            " install the version that wrote it, or a later one."
        )
    return number


def result(values: Mapping[str, Any]) -> dict[str, Any]:
    """A `result.json` of format 1, which says by its kind and its config what it does not say."""
    protocol = values["config"]["protocol"]
    unread = [section for section in _SECTIONS if section != protocol]
    new: dict[str, Any] = {"format": 2, "unread": unread}
    if "kind" not in values:
        unread += ["optim"] if values["steps"] == 0 else []
        unread += ["optim.learning_rate"] if "heads" in values.get("details", {}) else []
        return {**values, **new}
    unread.append("optim")
    found = values["values"]
    new |= {"headline": None, "speeds": []}
    if "pairs" in found and values["config"]["cka"]["run"]:
        value = found["pairs"][0]["cka"][-1][-1]
        new["headline"] = {"name": "cka_last_layer", "unit": "CKA", "value": value}
    if "rows" in found:
        unread += ["augment.center_crop", "data.split"]
        new["speeds"] = [_speed(row, found["reference"]) for row in found["rows"]]
    return {**values, **new}


def _speed(row: Mapping[str, Any], reference: str) -> dict[str, Any]:
    backbone, _, transformer = row["backbone"].partition(" + ")
    relative = row["relative_latency"]
    return {
        "backbone": backbone,
        "transformer": transformer,
        "median": relative["median"],
        "low": relative["low"],
        "high": relative["high"],
        "milliseconds": row["latency_ms"]["median"],
        "reference": reference,
    }


def plan(values: Mapping[str, Any]) -> dict[str, Any]:
    """A `<study>.json` of format 1, whose settings do not say what is shown of them."""
    settings = []
    for setting in values["settings"]:
        shows, label = _OF_ANALYSES.get(setting["protocol"] or "", ("score", ""))
        settings.append({**setting, "shows": shows, "label": label})
    return {**values, "format": 2, "settings": settings}
