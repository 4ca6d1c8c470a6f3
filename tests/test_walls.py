"""A task, a protocol, a backbone enter by a file and a line, and leave by deleting them.

Both is done to a copy of the packages, in processes of their own.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_new_backbone import FAMILY

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = ROOT / "tests" / "extension"
COPIED = (
    *("benchmarks", "configs", "docs", "examples", "fmi_jax", "tests", "weights_convert"),
    *(".ci", "Makefile", "MANIFEST.in", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("CITATION.cff", "LICENSE", "pyproject.toml", "run.py", "setup.py"),
)
CONFIG, TASKS = "fmi_jax/config.py", "fmi_jax/tasks/registry.py"
PROTOCOLS, MODELS = "fmi_jax/protocols/registry.py", "fmi_jax/models/registry.py"

# Public data sets with masks, which are of no use without segmentation.
MASKED = ("busi", "drive", "isic2018_lesions", "montgomery", "scr", "siim_pneumothorax")
# Grids that train on them.
TRANSFERS = ("transfer", "transfer_architectures", "transfer_domain", "transfer_ssl")
# What is deleted, and the lines that name it.
PARTS = (
    *(f"fmi_jax/data/raw/{name}.py" for name in MASKED),
    *(f"fmi_jax/data/raw/drawn/{name}.py" for name in MASKED),
    *("fmi_jax/tasks/segmentation.py", "fmi_jax/protocols/per_pixel.py"),
    *("fmi_jax/protocols/heads/per_patch.py", "fmi_jax/protocols/heads/decoder.py"),
    *("fmi_jax/protocols/heads/unet.py", "fmi_jax/protocols/heads/upernet.py"),
    *("fmi_jax/tasks/self_supervision.py", "fmi_jax/protocols/pretraining.py"),
    *("fmi_jax/tasks/representation.py", "fmi_jax/protocols/monitor.py"),
    *("fmi_jax/protocols/byol.py", "fmi_jax/protocols/dino.py", "fmi_jax/protocols/simsiam.py"),
    *("fmi_jax/tasks/reconstruction.py", "fmi_jax/protocols/mae.py"),
    *("fmi_jax/study/grids/initial_weights.py", "fmi_jax/study/grids/in_domain.py"),
    *(f"fmi_jax/study/grids/{name}.py" for name in TRANSFERS),
)
NAMED = re.compile(
    r"\b(segmentation|Segmentation|multilabel_segmentation|MultilabelSegmentation|per_pixel"
    r"|self_supervision|SelfSupervision"
    r"|dino|dino_ssl|DinoConfig|byol|ByolConfig|simsiam|SimSiamConfig|DecoderConfig"
    r"|decoder|unet|UNetConfig|upernet|UPerNetConfig"
    r"|mae|MaeConfig|reconstruction|per_patch|initial_weights|in_domain|segmentation_metrics"
    r"|transfer_architectures|transfer_domain|transfer_ssl"
    r"|busi|BUSI|drive|DRIVE|montgomery|MONTGOMERY|isic2018_lesions|ISIC2018_LESIONS"
    r"|siim_pneumothorax|SIIM_PNEUMOTHORAX|scr|SCR|scr_heart|SCR_HEART|scr_clavicle|SCR_CLAVICLE)\b"
)
STUDIES = "fmi_jax/study/registry.py"
LINES = {
    **{CONFIG: 14, TASKS: 3, PROTOCOLS: 16, STUDIES: 10},
    "fmi_jax/data/registry.py": 14,
    **{"tests/parity_families/numbers.py": 4, "tests/parity_families/__init__.py": 2},
}
# What is about the parts that were deleted goes with them.
ABOUT = (
    *(
        "tests/protocols/test_dino.py",
        "tests/protocols/test_mae.py",
        "tests/protocols/test_pretraining_on_devices.py",
        "tests/protocols/test_saliency_on_masks.py",
        "tests/protocols/test_unet.py",
        "tests/protocols/test_view_prediction.py",
        "tests/parity_families/dino.py",
        "tests/parity_families/masks.py",
        "tests/parity_families/unet.py",
        "tests/data/test_masks.py",
        "tests/data/test_overlapping_masks.py",
        "tests/data/test_unlabelled.py",
        "tests/tasks/test_mask_loss.py",
        "tests/tasks/test_representation.py",
        "tests/tasks/test_segmentation_task.py",
    ),
    *("tests/run/test_segmentation_run.py", "tests/run/test_dino_run.py"),
    "tests/run/test_windows_run.py",
    "tests/run/test_masks_run.py",
    "tests/run/test_monitors_run.py",
    *("tests/run/test_other_tasks_run.py", "tests/test_walls.py"),
    *("tests/study/test_transfer.py", "tests/study/test_reproduction.py"),
    *("tests/study/test_initial_weights.py", "tests/weights_convert/test_convert_pretrained.py"),
    *("configs/dino.py", "configs/lesions.py", "configs/unet.py", "benchmarks/pretraining.py"),
    *("examples/pretraining.py", "examples/segmentation.py"),
    *(f"tests/data/test_data_{name}.py" for name in MASKED),
)
COMMANDS = re.compile(
    rf"^.*(configs/(dino|lesions|unet)\.py|fmi-jax (prepare|draw) ({'|'.join(MASKED)})).*\n",
    re.MULTILINE,
)
# Table B.1 compares with a ResNet that others have pre-trained; "dino" is a row of that table.
OTHER_MEANING = {
    "fmi_jax/study/grids/tableb.py": {"dino"},
    "fmi_jax/data/preparing/locate.py": {"drive"},  # of a path on Windows
}


def copied(folder: Path) -> Path:
    """A copy of this checkout, without what runs and tools have left in it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python COMMAND` in the copy, over the packages of the copy alone."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )


def succeed(folder: Path, *command: str) -> str:
    done = run(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(folder: Path, *tests: str) -> str:
    """The chosen tests of the copy pass; returns what was printed."""
    return succeed(folder, "-m", "pytest", "-vv", "-p", "no:cacheprovider", *tests)


def deleted(folder: Path) -> Path:
    """A copy without segmentation and without pre-training."""
    copied(folder)
    for name in (*PARTS, *ABOUT):
        (folder / name).unlink()
    for name, expected in LINES.items():
        lines = (folder / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if not NAMED.search(line)]
        assert len(lines) - len(kept) == expected, name
        (folder / name).write_text("".join(kept))
    for path in (folder / "README.md", *(folder / "docs").glob("*.md")):
        path.write_text(COMMANDS.sub("", path.read_text()))
    return folder


def words(path: Path) -> Iterator[str]:
    """Identifiers and strings of a file, docstrings aside."""
    tree = ast.parse(path.read_text())
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Constant) and id(node) not in prose:
            yield str(node.value)


IMPORT_ALL = """
import importlib, pkgutil, fmi_jax
for module in pkgutil.walk_packages(fmi_jax.__path__, "fmi_jax."):
    importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deleted(tmp_path_factory.mktemp("without"))


def test_what_was_deleted_is_named_nowhere(without: Path) -> None:
    for path in sorted((without / "fmi_jax").rglob("*.py")):
        name = str(path.relative_to(without))
        found = {word for word in words(path) if NAMED.fullmatch(word)}
        assert found == OTHER_MEANING.get(name, set()), name


def test_without_them_everything_imports_and_runs(without: Path) -> None:
    succeed(without, "-c", IMPORT_ALL)
    said = succeed(without, "-m", "fmi_jax.cli", "protocols")
    assert "attentive" in said
    assert not NAMED.search(said)
    passed = run_tests(
        without,
        *("tests/test_architecture.py", "tests/protocols/test_product.py"),
        *("tests/protocols/test_protocols_command.py", "tests/test_without_jax.py"),
        "tests/test_configs.py::test_the_config_has_a_section_for_the_options_of_every_part",
        "tests/test_configs.py::test_every_protocol_is_in_a_documented_command",
    )
    assert "test_judges_are_added_to_the_network_that_was_trained PASSED" in passed


def test_labels_that_no_task_is_for_are_refused(without: Path, tmp_path: Path) -> None:
    for name in ("image.png", "mask.png"):
        Image.new("L", (2, 2)).save(tmp_path / name)
    table = tmp_path / "table.csv"
    table.write_text("path,mask\nimage.png,mask.png\n")
    command = ("prepare", "csv", "--name", "masked", "--source", str(table))
    done = run(without, "-m", "fmi_jax.cli", *command, "--data-dir", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: no task is for masks: expected one class per image or ")


@pytest.mark.slow
def test_without_them_every_other_test_passes(without: Path) -> None:
    workers = ("-n", "auto", "--maxprocesses=4", "--dist", "worksteal")
    succeed(without, "-m", "pytest", "-p", "no:cacheprovider", *workers, "tests")


def insert(path: Path, lines: dict[str, str]) -> None:
    """Put each line after the one line of a file that reads so."""
    text = path.read_text()
    for after, line in lines.items():
        assert text.count(f"\n{after}\n") == 1, (path, after)
        text = text.replace(f"\n{after}\n", f"\n{after}\n{line}\n")
    path.write_text(text)


DOCUMENTED = """
| `likeness` | nothing | | `likeness` |

python run.py --config=configs/quickstart.py --workdir=runs/likeness --config.protocol=likeness
"""


def added(folder: Path) -> Path:
    """A copy with a new task, head, judge and backbone."""
    copied(folder)
    for part in EXTENSION.rglob("*.py"):
        if part.parent != EXTENSION:
            shutil.copy(part, folder / "fmi_jax" / part.relative_to(EXTENSION))
    (folder / "fmi_jax" / "models" / "toy.py").write_text(FAMILY)
    insert(
        folder / MODELS, {"    swin,": "    toy,", "        *swin.SPECS,": "        *toy.SPECS,"}
    )
    insert(
        folder / TASKS,
        {
            "from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel": (
                "from fmi_jax.tasks.grades import Grades"
            ),
            "        Binary,": "        Grades,",
        },
    )
    insert(
        folder / PROTOCOLS,
        {
            "    knn,": "    likeness,",
            "        knn.SPEC,": "        likeness.SPEC,",
            "    stacked,": "    tempered,",
            "        linear.SPEC,": "        tempered.SPEC,",
        },
    )
    insert(
        folder / CONFIG,
        {
            "from fmi_jax.protocols.heads.stacked import TransformerConfig": (
                "from fmi_jax.protocols.heads.tempered import TemperedConfig"
            ),
            "    timing: TimingConfig = dataclasses.field(default_factory=TimingConfig)": (
                "    tempered: TemperedConfig = dataclasses.field(default_factory=TemperedConfig)"
            ),
        },
    )
    with (folder / "docs" / "protocols.md").open("a") as file:
        file.write(DOCUMENTED)
    return folder


def test_new_parts_keep_the_contract_of_all(tmp_path: Path) -> None:
    run_tests(
        added(tmp_path),
        *("tests/extension/contract.py", "tests/test_architecture.py"),
        "tests/test_configs.py::test_the_config_has_a_section_for_the_options_of_every_part",
        "tests/test_configs.py::test_every_protocol_is_in_a_documented_command",
        "tests/protocols/test_protocols.py::test_every_protocol_is_documented",
        "tests/protocols/test_protocols_command.py",
    )
