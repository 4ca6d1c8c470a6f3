"""`make test-aot-all`: what is compiled already is not compiled again, and the table has it all."""

import json
from pathlib import Path

import pytest

from benchmarks import aot_all
from fmi_jax.aot.program import Program
from fmi_jax.aot.targets import CHIPS


class Stand:
    """Stands for the process that compiles, and says what it was asked."""

    asked: list[Program]

    def __init__(self, name: str):
        del name

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def report(self, program: Program) -> dict:
        self.asked.append(program)
        if program.what == "eval":
            return {"error": "XlaRuntimeError: cannot | be\nand more", "exit_code": 1}
        return {
            "peak_bytes": 2_500_000_000,
            "fits": program.config.backbone.name != "sam_vit_b",
            "state_bytes": 1_000_000_000,
            "flops": 3e12,
            "bytes_accessed": 4e9,
            "kernels": 1234,
            "collectives": {"all-reduce": [3, 5_000_000]},
            "ideal_bytes": 4_900_000,
            "n_by_n": [],
            "compile_seconds": 7.2,
        }


@pytest.fixture
def asked(monkeypatch) -> list[Program]:
    monkeypatch.setattr(Stand, "asked", [], raising=False)
    monkeypatch.setattr(aot_all, "Compiler", Stand)
    some = [p for p in aot_all.programs("h200") if p.config.backbone.name == "sam_vit_b"]
    some += [next(iter(aot_all.programs("h200")))]
    monkeypatch.setattr(aot_all, "programs", lambda name: iter(some))
    return Stand.asked


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, asked: list[Program]) -> None:
    results = tmp_path / "aot.jsonl"
    aot_all.compile_all("h200", results)
    count = len(asked)
    assert count == len(aot_all.done(results)) > 5
    whole = results.read_text()
    results.write_text(whole[:-40] + "\n")  # the last line was being written
    aot_all.compile_all("h200", results)
    assert len(asked) == count + 1
    assert asked[-1] == asked[count - 1]
    aot_all.compile_all("h200", results)
    assert len(asked) == count + 1


def test_the_table_names_what_fails_and_what_does_not_fit(tmp_path, asked: list[Program]) -> None:
    results = tmp_path / "aot.jsonl"
    aot_all.compile_all("h200", results)
    text = aot_all.table([json.loads(line) for line in results.read_text().splitlines()])
    rows = [line for line in text.splitlines() if line.startswith("| sam_vit_b, 1024")]
    assert "## 8 x h200" in text
    (evaluation,) = [row for row in rows if ", eval," in row]
    assert "**XlaRuntimeError: cannot / be**" in evaluation
    tuned = next(row for row in rows if "finetune, 2 a chip" in row)
    assert "2.50 **does not fit** | 1.00 | 3.00 | 4.0 | 1,234 | all-reduce 3 | 5.0 | 4.9" in tuned
    assert len({row.count("|") for row in rows}) == 1


def test_the_product_is_a_few_hundred_programs_each_once() -> None:
    keys = [aot_all.key(p.to_json()) for name in CHIPS for p in aot_all.programs(name)]
    assert len(keys) == len({*keys})
    assert 300 < len(keys) < 400
