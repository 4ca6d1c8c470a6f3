"""Upgrades files of earlier versions to the current format, and refuses files of later ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmi_jax.errors import UserError

_OF_ANALYSES = {
    "cka": {"shows": "analysis", "label": "CKA of the last layer"},
    "timing": {"shows": "speed", "label": ""},
}
"""`shows` and `label` of every analysis that existed in format 1."""

_SHARED = ("data", "augment", "backbone", "optim", "train")
"""Config sections that every protocol reads; each of the others belongs to one."""


def format_of(values: Mapping[str, Any], known: int, path: Path) -> int:
    """Check the format number of a file and return it; files without one are of format 1.

    Args:
      values: parsed JSON content.
      known: format number that this version writes.
      path: file that was read, for the message.

    Raises:
      UserError: a later version wrote it.
      TypeError: it holds no JSON object, or no number.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"expected a JSON object, not {type(values).__name__}")
    number = values.get("format", 1)
    if number > known:
        raise UserError(
            f"{path} is of format {number}, and this version of fmi_jax reads up to {known}:"
            " install the version that wrote it, or a later one."
        )
    return number


def result(values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Upgrade a `result.json` of format 1 to 5.

    Args:
      values: content of the file.
      number: file's format number.
    """
    if number == 5:  # it had no seal
        return {**values, "format": 6}
    if number == 4:
        return {**values, "format": 6, "findings": [*map(_finding, values["findings"])]}
    if number == 3:
        return result({**values, **_NEW}, 4)
    if number == 1:
        values = {**values, **_unread(values)}
    kept = {name: value for name, value in values.items() if name not in _FINDING}
    if "kind" in values:
        kept |= {
            "protocol": kept.pop("summary"),
            "seed": values["config"]["train"]["seed"],
            "steps": 0,
            "best": None,
            "notes": (),
        }
        finding = {
            **{name: values[name] for name in ("title", "values", "text", "figures", "notes")},
            "evaluations": {},
            "resampled": "",
        }
    else:
        finding = {
            "title": "",
            "values": values.get("details", {}),
            "text": "",
            "figures": {},
            "notes": (),
            "evaluations": {split: values[split] for split in ("val", "test")},
            "resampled": values["resampled"],
        }
    finding |= {"headline": values.get("headline"), "speeds": values.get("speeds", [])}
    finding = {"judge": values["config"]["protocol"], **finding}
    return result({**kept, **_NEW, "findings": [finding]}, 4)


_NEW = {"format": 4, "adapt": "", "head": ""}


def _finding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Name the method of the intervals of formats 1 to 4, and add that nothing was chosen."""
    return {
        **values,
        "evaluations": {
            split: {
                **found,
                "methods": dict.fromkeys(found["intervals"], "percentile bootstrap"),
                "redrawn": 0,
                **{name: {} for name in ("calibration", "choices", "decisions")},
                "subgroups": [],
            }
            for split, found in values["evaluations"].items()
        },
    }


_FINDING = (
    *("kind", "title", "values", "text", "figures", "headline", "speeds"),
    *("val", "test", "details", "resampled"),
)
"""Keys of earlier formats whose content belongs to a finding."""


def _unread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the keys that format 1 lacked from its kind and its config."""
    config = values["config"]
    unread = [
        name
        for name, value in config.items()
        if isinstance(value, Mapping) and name not in (*_SHARED, config["protocol"])
    ]
    new: dict[str, Any] = {"unread": unread}
    if "kind" not in values:
        unread += ["optim"] if values["steps"] == 0 else []
        unread += ["optim.learning_rate"] if "heads" in values.get("details", {}) else []
        return new
    unread.append("optim")
    found = values["values"]
    new |= {"headline": None, "speeds": []}
    if "pairs" in found and config["cka"]["run"]:
        value = found["pairs"][0]["cka"][-1][-1]
        new["headline"] = {"name": "cka_last_layer", "unit": "CKA", "value": value}
    if "rows" in found:
        unread += ["augment.center_crop", "data.split"]
        new["speeds"] = [_speed(row, found["reference"]) for row in found["rows"]]
    return new


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


def plan(values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Upgrade a `<study>.json` of format 1 or 2.

    Args:
      values: content of the file.
      number: file's format number.
    """
    if number == 2:
        return {**values, "format": 3, "reference": {}}
    score = {"shows": "score", "label": ""}
    settings = [
        {**setting, **_OF_ANALYSES.get(setting["protocol"], score)}
        for setting in values["settings"]
    ]
    return plan({**values, "settings": settings}, 2)
