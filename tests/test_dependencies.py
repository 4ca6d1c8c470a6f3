"""What a user installs along with fmi_jax: its licences, as its metadata say, and versions."""

import email
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import lowest
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

PERMISSIVE = {
    *("Apache-2.0", "MIT", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib"),
    *("PSF-2.0", "CC0-1.0", "HPND"),
}
# Copyleft for changes to the package's own files, and we change none.
BY_FILE = {"certifi": "MPL-2.0", "tqdm": "MPL-2.0"}

SPELLINGS = {
    "Apache-2.0": r"Apache Software License|Apache(-| | License\W*Version )2\.0\b.*",
    "MIT": r"MIT( License\b.*)?",
    "BSD-3-Clause": r"BSD License|(3-Clause BSD|BSD 3-Clause) License.*",
    "PSF-2.0": r"Python Software Foundation License",
    "MPL-2.0": r"Mozilla Public License 2\.0.*",
    "ISC": r"ISC License.*",
}
"""What packages call a licence that have not its SPDX name: classifiers, or the text itself."""


def installed(requirements: list[str]) -> dict[str, metadata.PackageMetadata]:
    """What these need at run time, directly and through others, by name."""
    found: dict[str, metadata.PackageMetadata] = {}
    left = [(Requirement(each), "") for each in requirements]
    done = set()
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = metadata.metadata(name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in done:
                done.add((name, wanted))
                left += [(Requirement(each), wanted) for each in metadata.requires(name) or ()]
    return found


def spdx(words: str) -> str:
    text = " ".join(words.split())
    return next((n for n, known in SPELLINGS.items() if re.fullmatch(known, text)), text)


def alternatives(package: metadata.PackageMetadata) -> Iterator[set[str]]:
    """Licences of a package that all hold, each as what one may choose from."""
    expression = package.get("License-Expression") or package.get("License") or ""
    classifiers = [
        words.rpartition(" :: ")[2]
        for words in package.get_all("Classifier") or ()
        if words.startswith("License ::")
    ]
    if classifiers and not package.get("License-Expression"):
        yield {spdx(words) for words in classifiers}
        return
    if "\n" in expression:  # the text itself
        yield {spdx(expression)}
        return
    for part in expression.split(" AND "):
        yield {spdx(choice.strip("()")) for choice in part.split(" OR ")}


def refused(name: str, package: metadata.PackageMetadata) -> list[set[str]]:
    allowed = PERMISSIVE | {BY_FILE.get(name, "MIT")}
    return [choices for choices in alternatives(package) if not choices & allowed]


def test_every_dependency_may_be_used_and_passed_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = installed(project["dependencies"])
    assert {"jax", "jaxlib", "numpy", "ml-dtypes"} <= packages.keys()
    wrong = {name: found for name, each in packages.items() if (found := refused(name, each))}
    assert not wrong
    assert packages.keys() >= BY_FILE.keys()


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ("License-Expression: GPL-3.0-only", False),
        ("License-Expression: MIT AND GPL-3.0-only", False),
        ("License-Expression: MIT OR GPL-3.0-only", True),
        ("License: MPL-2.0", False),
        ("License: MIT but not really", False),
        ("License: Apache License Version 2.0, January 2004 ...", True),
        ("Classifier: License :: OSI Approved :: GNU General Public License (GPL)", False),
        ("Classifier: License :: OSI Approved :: BSD License", True),
        ("Name: of-no-licence", False),
    ],
)
def test_other_licences_are_found(fields: str, allowed: bool) -> None:
    package = email.message_from_string(fields)
    assert (not refused("other", package)) is allowed  # type: ignore[arg-type]


def test_every_dependency_has_a_lowest_version_that_can_be_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {Requirement(each).name: Requirement(each) for each in project["dependencies"]}
    pinned = [each.split("==") for each in lowest.lowest()]
    assert [name for name, _ in pinned] == [*bounds]
    for name, version in pinned:
        assert version in bounds[name].specifier, name
        assert metadata.version(name) in bounds[name].specifier, name
