"""Backbones against their PyTorch references, and the tool that compares them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from parity import INPUTS, compare_case, second_layouts
from parity_families import FAMILIES
from parity_families.numbers import NUMBERS
from tolerances import PARITY_FORWARD

from fmi_jax.errors import UserError
from fmi_jax.models.registry import BACKBONES

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tests" / "golden"


def _cases() -> list[Path]:
    """The compact cases, and those beside the checkout, of the families that are there."""
    folders = [
        p.parent
        for root in (HERE, ROOT.parent / "shared" / "golden")
        for p in sorted(root.glob("*/meta.json"))
    ]
    known = {*FAMILIES, *NUMBERS}
    return [f for f in folders if json.loads((f / "meta.json").read_text())["family"] in known]


def test_every_family_has_an_adaptor_and_a_compact_case():
    cases = {
        json.loads((f / "meta.json").read_text())["family"] for f in _cases() if HERE in f.parents
    }
    assert cases == {*FAMILIES, *NUMBERS}
    families = {spec.family for spec in BACKBONES.values()}
    assert families <= {family.backbone for family in FAMILIES.values()}


@pytest.mark.parametrize("folder", _cases(), ids=lambda f: f"{f.parents[1].name}-{f.name}")
def test_every_array_and_gradient_is_the_references(folder):
    comparisons = compare_case(folder)
    inputs = json.loads((folder / "meta.json").read_text()).get("inputs", ())
    with np.load(folder / "io.npz") as io:
        outputs = [n for n in io if n.split("/")[-1] not in INPUTS and n not in inputs]
    second = {file.name for file in second_layouts(folder)}
    assert [c.name for c in comparisons if c.file not in second] == outputs
    assert {c.file for c in comparisons if c.file in second} == second
    assert not [c for c in comparisons if not c.passed]
    assert max(c.relative for c in comparisons) <= PARITY_FORWARD


@pytest.mark.slow
def test_it_holds_for_programs_compiled_as_for_users():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "parity.py", *_cases()],
        capture_output=True,
        text=True,
        check=False,
        env=runs.environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_number_of_a_function_fails(tmp_path):
    for family, wrong in (("metrics", "missing_class/expected/recall"), ("knn", "pred_scores")):
        folder = tmp_path / family
        shutil.copytree(HERE / family, folder)
        with np.load(folder / "io.npz") as io:
            arrays = dict(io)
        changed = [name for name in arrays if name.endswith(wrong)]
        arrays |= {name: arrays[name] + 1e-4 for name in changed}
        arrays["something/new"] = np.zeros(3)
        np.savez(folder / "io.npz", **arrays)
        failed = [c.name for c in compare_case(folder) if not c.passed]
        assert failed == [*changed, "something/new (not covered)"]


def test_what_is_undefined_must_be_undefined(tmp_path):
    folder = tmp_path / "case"
    shutil.copytree(HERE / "clinical_metrics", folder)
    with np.load(folder / "io.npz") as io:
        arrays = dict(io)
    assert np.isnan(arrays["binary_one_class/expected/auroc"])
    arrays["binary_one_class/expected/auroc"] = np.array(0.5)
    arrays["binary_small/expected/auroc"] = np.array(np.nan)
    np.savez(folder / "io.npz", **arrays)
    failed = [c.name for c in compare_case(folder) if not c.passed]
    assert sorted(failed) == [
        "binary_one_class/expected/auroc",
        "binary_small/expected/auroc",
    ]


@pytest.fixture
def case(tmp_path):
    """A copy of the smallest case, to spoil: its one-channel run and its gradients alone."""
    folder = tmp_path / "case"
    shutil.copytree(HERE / "dino_v1_tiny", folder)
    with np.load(folder / "io.npz") as io:
        arrays = {n: a for n, a in io.items() if n.startswith(("ch1/", "grad"))}
    np.savez(folder / "io.npz", **arrays)
    return folder


def test_an_error_or_an_unknown_array_fails(case):
    with np.load(case / "io.npz") as io:
        arrays = dict(io)
    arrays["ch1/block_01"] = arrays["ch1/block_01"] + 1e-3
    arrays["grad/norm.weight"] = arrays["grad/norm.weight"] * 1.001
    arrays["ch1/something_new"] = np.zeros(3, np.float32)
    arrays["ch1/block_00"] = np.full_like(arrays["ch1/block_00"], np.nan)
    np.savez(case / "io.npz", **arrays)
    failed = {c.name for c in compare_case(case) if not c.passed}
    assert failed == {
        "ch1/block_00",
        "ch1/block_01",
        "ch1/something_new (not covered)",
        "grad/norm.weight",
    }


def test_a_second_layout_is_compared_in_the_runs_that_its_own_code_agrees_on(tmp_path):
    case = tmp_path / "case"
    shutil.copytree(HERE / "dino_v1_tiny", case)
    tensors = torch.load(case / "checkpoint.pth", weights_only=True)
    tensors["norm.bias"] = tensors["norm.bias"] + 1e-2
    wrong = {"teacher": {f"backbone.{name}": value for name, value in tensors.items()}}
    torch.save(wrong, case / "checkpoint_teacher.pth")
    meta = json.loads((case / "meta.json").read_text())
    apart = {"final_cls": 1e-7, "ch1/final_cls": 0.1}
    meta["checkpoint_teacher"] = {"max_abs_diff_to_io": apart}
    (case / "meta.json").write_text(json.dumps(meta))

    second = [c for c in compare_case(case) if c.file == "checkpoint_teacher.pth"]
    outputs = ("tokens_in", "block_00", "block_01", "final_tokens_norm", "final_cls")
    assert [c.name for c in second] == list(outputs)  # not of ch1, and no gradients
    assert {c.name for c in second if not c.passed} == {"final_tokens_norm", "final_cls"}

    meta["checkpoint_teacher"]["max_abs_diff_to_io"] = {"final_cls": 0.1}
    (case / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"expected io_teacher\.npz, or in meta\.json"):
        compare_case(case)

    # What its own code computes, where the case has that.
    with np.load(case / "io.npz") as io:
        np.savez(case / "io_teacher.npz", **{"ch1/block_01": io["ch1/block_01"]})
    second = [c for c in compare_case(case) if c.file == "checkpoint_teacher.pth"]
    assert [(c.name, c.run, c.passed) for c in second] == [("ch1/block_01", "ch1", True)]


def test_the_tool_exits_1_and_names_what_it_cannot_run(case, tmp_path):
    meta = json.loads((case / "meta.json").read_text())
    (case / "meta.json").write_text(json.dumps(meta | {"family": "perceptron"}))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "parity.py", case, tmp_path / "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "'perceptron' has no adaptor" in done.stderr
    assert "nothing: not a case" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_other_sizes_is_refused(case):
    meta = json.loads((case / "meta.json").read_text())
    meta["config"]["depth"] += 1
    (case / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"missing: blocks\.2\.norm1\.weight"):
        compare_case(case)
