"""Who may import whom. Every import counts, those inside functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PLANNED = {
    *("errors", "fields", "artifacts.older", "artifacts.result", "artifacts.sealed"),
    *("tasks.registry", "study.published"),
}
# What each part may import of ours, by prefix; itself is always allowed. The most specific
# entry decides. "jax" stands for the library of that name.
ALLOWED: dict[str, set[str]] = {
    "fmi_jax.errors": set(),
    "fmi_jax.paths": {"errors", "atomic"},
    "fmi_jax.arguments": {"errors"},
    "fmi_jax.guard": {"errors"},
    "fmi_jax.atomic": set(),
    "fmi_jax.cores": set(),
    "fmi_jax.huge_pages": set(),
    "fmi_jax.types": set(),
    "fmi_jax.drawing": set(),
    "fmi_jax.registry": {"errors"},
    "fmi_jax.rules": {"errors"},
    "fmi_jax.settings": {"errors", "rules"},
    "fmi_jax.fields": {"errors", "rules", "settings"},
    "fmi_jax.flags": {"errors", "rules", "settings", "fields"},
    "fmi_jax.nn": {"types", "jax"},
    "fmi_jax.models": {"types", "errors", "registry", "nn", "jax"},
    "fmi_jax.saliency": {"types", "errors", "nn", "models.base", "jax"},
    "fmi_jax.saliency.comparison": {"saliency", "tasks.intervals"},
    "fmi_jax.saliency.pictures": {"saliency", "nn", "artifacts.charts", "jax"},
    "fmi_jax.parallel": {"types", "errors", "jax"},
    "fmi_jax.augment": {"types", "errors", "settings", "nn.hardware", "data.labels", "jax"},
    "fmi_jax.data": {"types", "errors", "registry", "atomic", "cores", "paths"},
    "fmi_jax.data.preparing.commands": {
        *("types", "errors", "arguments", "registry", "data", "drawing.wording"),
    },
    "fmi_jax.data.preparing.prepare": {
        *("types", "errors", "paths", "registry", "data", "atomic", "cores", "tasks.registry"),
    },
    "fmi_jax.data.remarks": {
        *("data.prepared", "data.labels", "data.masks", "drawing.wording"),
    },
    "fmi_jax.data.card": {
        *("data.remarks", "atomic", "drawing", "data.prepared", "data.labels", "data.masks"),
    },
    "fmi_jax.artifacts": {"types", "errors", "atomic"},
    "fmi_jax.artifacts.record": {
        *("errors", "settings", "fields", "atomic", "artifacts", "parallel", "jax"),
    },
    "fmi_jax.artifacts.checkpoints": {
        *("errors", "atomic", "artifacts.sealed", "nn.shards", "parallel", "jax"),
    },
    "fmi_jax.artifacts.weights": {
        *("errors", "atomic", "paths", "artifacts.tensors", "models.base", "jax"),
    },
    "fmi_jax.training": {
        *("types", "errors", "settings", "nn", "parallel", "artifacts", "jax"),
    },
    "fmi_jax.tasks.segmentation": {
        *("types", "errors", "atomic", "settings", "tasks", "data.labels"),
        *("artifacts.evaluation", "jax"),
    },
    "fmi_jax.tasks.representation": set(),
    "fmi_jax.tasks.self_supervision": {"tasks", "jax"},
    "fmi_jax.tasks.reconstruction": {"tasks", "jax"},
    "fmi_jax.tasks.mask_loss": {"errors", "settings", "data.labels", "tasks", "nn.shards", "jax"},
    "fmi_jax.tasks.imbalance": {"errors", "settings", "data.labels", "tasks", "jax"},
    "fmi_jax.tasks": {
        *("types", "errors", "atomic", "settings", "data.labels", "data.prepared"),
        *("artifacts.evaluation", "augment", "drawing"),
    },
    "fmi_jax.protocols": {
        *("types", "errors", "atomic", "cores", "registry", "rules", "settings", "fields"),
        "parallel",
        *("nn", "models", "saliency", "augment", "data.prepared", "data.labels", "data.loader"),
        "data.masks",
        *("training", "tasks", "artifacts.evaluation", "artifacts.result", "artifacts.charts"),
        *("artifacts.history", "jax"),
    },
    "fmi_jax.config": {"settings", "fields", "protocols", "tasks"},
    "fmi_jax.options": {"errors", "settings", "fields", "config", "protocols"},
    "fmi_jax.report": {
        *("types", "errors", "tasks", "atomic", "artifacts", "data.labels", "drawing"),
    },
    "fmi_jax.run": {
        *("types", "errors", "atomic", "rules", "settings", "fields", "config", "nn", "models"),
        *("parallel", "augment", "data", "artifacts", "training", "tasks", "protocols"),
        *("saliency", "report", "paths", "jax"),
    },
    "fmi_jax.run.features": {
        *("errors", "atomic", "parallel", "data", "protocols.judging", "training", "jax"),
    },
    "fmi_jax.run.launch": {"errors", "jax"},
    "fmi_jax.run.peers": {"guard", "run.runtime", "jax"},
    "fmi_jax.run.runtime": {"jax", "__version__", "nn.hardware", "parallel"},
    "fmi_jax.entry": {"errors", "arguments", "flags", "config", "run"},
    "fmi_jax.study": {
        *("types", "errors", "atomic", "cores", "huge_pages", "registry", "flags", "entry"),
        *("arguments", "guard", "paths"),
        *(
            "rules",
            "settings",
            "fields",
            "config",
            "models.registry",
            "data",
            "artifacts",
            "tasks",
            "protocols",
        ),
        "run",
    },
    "fmi_jax.study.estimate": {
        *("errors", "drawing", "settings", "fields", "config", "data", "protocols", "run"),
        *("study", "jax"),
    },
    # A report starts without jax, and reads what other versions have written.
    "fmi_jax.study.report": {
        *("types", "errors", "atomic", "cores", "drawing", "settings", "fields"),
        *("arguments", "paths"),
        "artifacts.result",
        *("artifacts.history", "tasks", "study.planned", "study.published"),
        "study.state",
    },
    "fmi_jax.study.planned": PLANNED,
    "fmi_jax.study.state": PLANNED,
    "fmi_jax.study.published": set(),
    "fmi_jax.aot": {
        *(
            "errors",
            "atomic",
            "flags",
            "rules",
            "settings",
            "fields",
            "config",
            "nn",
            "models",
            "parallel",
            "data",
        ),
        *("training", "tasks", "protocols", "run", "jax"),
    },
    "fmi_jax.cli": {
        *("errors", "huge_pages", "settings", "models", "data", "options", "entry", "run"),
        *("arguments", "guard", "paths"),
        *("study", "__version__"),
    },
    "weights_convert": {
        *("types", "errors", "atomic", "registry", "nn", "models", "artifacts", "protocols"),
        *("arguments", "guard", "paths", "run.network", "jax"),
    },
}
# What reads and writes PyTorch files is all that needs PyTorch.
TORCH = {"weights_convert.read", "weights_convert.export"}
# Files of one kind never import each other: a new one must not lean on an old one.
KINDS = {
    "fmi_jax.models": {"arch", "base", "registry", "vit"},
    "fmi_jax.protocols": {
        *(
            "spec",
            "judging",
            "product",
            "pretraining",
            "monitor",
            "per_pixel",
            "registry",
            "choice",
            "hsic",
            "adapt",
            "heads",
        ),
    },
    "fmi_jax.protocols.adapt": set(),
    "fmi_jax.protocols.heads": set(),
    "weights_convert.layouts": {"registry"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("fmi_jax", "weights_convert"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module: str) -> None:
    parts = [part for part in ALLOWED if within(module, part)]
    assert parts or module == "fmi_jax", f"{module} has no entry in ALLOWED"
    part = max(parts, key=len, default=module)
    allowed = [a if a == "jax" else f"fmi_jax.{a}" for a in ALLOWED.get(part, ())]
    for name in imports(modules()[module]):
        top = name.split(".")[0]
        assert top not in {"configs", "tests"}, f"{module} imports {name}"
        if top == "torch":
            assert module in TORCH, f"{module} imports torch"
        if top == "weights_convert":
            assert module.startswith("weights_convert"), f"{module} imports {name}"
        if part in ("fmi_jax.report", "fmi_jax.data", "fmi_jax.artifacts.scalars"):
            assert top != "jax", f"{module} imports {name}"
        if top in {"fmi_jax", "jax"}:
            assert any(within(name, a) for a in [part, *allowed]), f"{module} imports {name}"


@pytest.mark.parametrize(("package", "shared"), KINDS.items())
def test_files_of_one_kind_do_not_import_each_other(package: str, shared: set[str]) -> None:
    for module, path in modules().items():
        if not module.startswith(package + ".") or module.endswith(".registry"):
            continue
        for name in imports(path):
            if within(name, package):
                sibling = name.removeprefix(package + ".").split(".")[0]
                assert sibling in shared, f"{module} imports {name}"


def test_no_file_holds_two_concepts() -> None:
    long = {m: n for m, p in modules().items() if (n := len(p.read_text().splitlines())) > 450}
    assert not long


def test_nothing_names_a_machine_or_a_registry() -> None:
    words = ("/" + "work/", "pypi" + ".org", "python" + "hosted")
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        if (inside[0].startswith(".") and inside[0] != ".ci") or inside[0] in {"runs", "data"}:
            continue
        if path.suffix in {".py", ".md", ".toml", ".cff", ".html", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not [word for word in words if word in text], path
