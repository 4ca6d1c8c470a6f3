"""Counts the structure of the code: modules, imports, and names in the wrong place.

    python benchmarks/structure.py                 this tree
    python benchmarks/structure.py BEFORE AFTER    two trees, side by side (`git worktree add`)

The figures come from the syntax trees of `fmi_jax` and `weights_convert`: modules and their median
length; modules with one importer; arrows of the import graph; statements; `isinstance` on kinds of
protocol; names of protocols outside `protocols/` and `study/grids/` (keys and subscripts do not
count: sections of configs and entries of results have the same names); lines that name a kind of
task outside `tasks/`; attribute lines of docstrings that begin with a preposition.
"""

import ast
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("fmi_jax", "weights_convert")
PROTOCOLS = {
    *("linear_probe", "finetune", "stacked_probe", "stacked_finetune", "partial"),
    *("stacked_partial", "attentive_probe", "lora", "probe_grid", "knn", "logistic", "cka"),
    *("timing", "dino", "fit"),
}
SPECS = {"ProtocolSpec", "FitSpec", "AdaptSpec", "HeadSpec", "JudgeSpec"}
PREPOSITIONS = r"(of|as|in|from|for|to|by|with|at|on|under|over|after|before|where|what|beside)"
ATTRIBUTE = re.compile(rf"^\s{{2,10}}[a-z_][\w, ]*: {PREPOSITIONS}\b")
TASKS = re.compile(
    r"\b(Task\.(BINARY|MULTICLASS|MULTILABEL)|Binary|Multiclass|Multilabel)\b"
    r"|[\"'](binary|multiclass|multilabel)[\"']"
)


def modules(tree: Path) -> dict[str, Path]:
    """Find every module, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*.py")):
            name = ".".join(path.relative_to(tree).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(syntax: ast.Module, known: set[str]) -> set[str]:
    """List our own modules that a module imports."""
    names: set[str] = set()
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name in known and "." in name}


def names_protocols(name: str, syntax: ast.Module) -> Iterator[str]:
    """Yield the protocols that a module names, outside the packages where they belong."""
    if name.startswith(("fmi_jax.protocols", "fmi_jax.study.grids", "fmi_jax.study.recipe")):
        return
    keys: set[ast.AST | None] = set()
    for node in ast.walk(syntax):
        if isinstance(node, ast.Dict):
            keys.update(node.keys)
        elif isinstance(node, ast.Subscript):
            keys.add(node.slice)
    for node in ast.walk(syntax):
        if isinstance(node, ast.Constant) and node.value in PROTOCOLS and node not in keys:
            yield str(node.value)


def of_specs(syntax: ast.Module) -> int:
    """Count how often a module asks which kind of spec it has."""
    asked = 0
    for node in ast.walk(syntax):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            kinds = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            asked += bool(kinds & SPECS)
    return asked


def count(tree: Path) -> dict[str, float]:
    """Compute every figure of a tree."""
    paths = modules(tree)
    syntax = {name: ast.parse(path.read_text()) for name, path in paths.items()}
    lines = {name: path.read_text().splitlines() for name, path in paths.items()}
    arrows = {name: imports(tree, set(paths)) - {name} for name, tree in syntax.items()}
    importers = Counter(target for targets in arrows.values() for target in targets)
    real = [name for name, path in paths.items() if path.name != "__init__.py"]
    outside = {n: x for n, x in lines.items() if not n.startswith("fmi_jax.tasks")}
    return {
        "modules": len(real),
        "median length, lines": statistics.median(len(lines[name]) for name in real),
        "modules with one importer": sum(importers[name] == 1 for name in real),
        "arrows of the import graph": sum(map(len, arrows.values())),
        "statements": sum(isinstance(n, ast.stmt) for s in syntax.values() for n in ast.walk(s)),
        "isinstance on kinds of protocol": sum(map(of_specs, syntax.values())),
        "names of protocols outside their rooms": sum(
            len(list(names_protocols(name, s))) for name, s in syntax.items()
        ),
        "lines that name a kind of task outside tasks/": sum(
            bool(TASKS.search(line)) for some in outside.values() for line in some
        ),
        "attribute lines that begin with a preposition": sum(
            bool(ATTRIBUTE.match(line)) for some in lines.values() for line in some
        ),
    }


if __name__ == "__main__":
    trees = [Path(a) for a in sys.argv[1:]] or [Path(__file__).resolve().parent.parent]
    found = [count(tree) for tree in trees]
    for figure in found[0]:
        print(f"{figure:<48}" + "".join(f"{values[figure]:>10,.0f}" for values in found))
