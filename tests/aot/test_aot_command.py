"""`python -m benchmarks.aot` where nothing is compiled: arguments, targets, what is missing."""

import json
import shlex

import pytest

from benchmarks import aot
from fmi_jax.aot import compiler, worker
from fmi_jax.aot.program import Program, from_json
from fmi_jax.aot.targets import CHIPS, target
from fmi_jax.errors import UsageError
from fmi_jax.guard import guarded


def parsed(line: str) -> tuple[Program, bool]:
    return aot.parse(shlex.split(line))


def test_every_option_is_a_field_of_the_config() -> None:
    asked, as_json = parsed(
        "--target v5e:4x4 --what eval --backbone sam_vit_b --protocol lora --image-size 1024"
        " --batch 32 --sharding fsdp --model-parallel 2 --remat --accumulate 4 --last-block 5"
        " --dtype float32 --set lora.rank=4 --json"
    )
    assert as_json
    assert (asked.what, asked.target) == ("eval", target("v5e:4x4"))
    config = asked.config
    assert (config.backbone.name, config.protocol, config.image_size) == ("sam_vit_b", "lora", 1024)
    assert (config.train.batch_size, config.train.sharding) == (32, "fsdp")
    assert (config.train.model_parallel, config.optim.accumulate) == (2, 4)
    assert (config.backbone.remat, config.backbone.last_block) == (True, 5)
    assert (config.backbone.dtype, config.lora.rank) == ("float32", 4)
    assert config.data.prepared_size == 1170  # of which the augmentation keeps 1024
    assert from_json(json.dumps(asked.to_json())) == asked


def test_prepared_images_are_as_given() -> None:
    asked, _ = parsed("--target h200 --image-size 518 --set data.prepared_size=518")
    assert asked.config.data.prepared_size == 518
    asked, _ = parsed("--target h200 --image-size 224")
    assert asked.config.data.prepared_size == 256


@pytest.mark.parametrize(
    ("text", "devices", "topology", "count"),
    [
        ("h200", 0, "1x8", 8),
        ("h200", 2, "1x8", 2),
        ("a100", 16, "2x8", 16),
        ("h100:1x4", 0, "1x4", 4),
        ("v5e", 0, "2x2", 4),
        ("v5e", 1, "2x2", 1),
        ("v6e", 6, "2x4", 6),
        ("v5e:4x4", 0, "4x4", 16),
        ("v5p", 0, "2x2x1", 4),
    ],
)
def test_a_target_is_a_host_or_what_is_asked_for(text, devices, topology, count) -> None:
    found = target(text, devices)
    assert (found.name, found.topology, found.count) == (text.split(":")[0], topology, count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--target"),
        ("--target h20", "Did you mean 'h200'"),
        ("--target v5e:3x3", "Valid: 16x16, 2x2"),
        ("--target v5e:two", "such as 'v5e:2x2'"),
        ("--target h200:1x9", "at most 8"),
        ("--target v5e:2x2 --devices 5", "v5e:2x2 has 4"),
        ("--target h200 --devices -1", "1 or more"),
        ("--target h200 --batch many", "--batch"),
        ("--target h200 --what predict", "'train', 'eval', 'features'"),
        ("--target h200 --sharding zero", "replicated, fsdp"),
        ("--target h200 --set optim.rate=1", "Did you mean"),
        ("--target h200 --set optim", "FIELD=VALUE"),
        ("--target h200 --batch 6 --accumulate 4", "multiple"),
        ("--target h200 --protocol knn", "--what features"),
        ("--target h200 --protocol lra", "Did you mean 'lora'"),
        ("--target h200 --backbones sam_vit_b", "unrecognized"),
    ],
)
def test_wrong_usage_is_one_message(options: str, message: str, capsys) -> None:
    assert guarded(lambda: aot.main(options.split())) == UsageError.exit_code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_missing_compilers_are_named_with_the_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(compiler.ENVIRONMENT, str(tmp_path))
    assert guarded(lambda: aot.main(["--target", "h200"])) == 1
    said = capsys.readouterr().err
    assert "make .venv-aot" in said
    assert str(tmp_path) in said
    assert said.count("\n") == 1


REPORT = {
    "target": {"name": "v5e", "topology": "2x2", "count": 4},
    "title": "train step for 4 x v5e (2x2)",
    "state_bytes": 1_000_000_000,
    "activation_bytes": 2_000_000_000,
    "peak_bytes": 3_000_000_000,
    "memory_bytes": 17_179_869_184,
    "fits": True,
    "flops": 197e9,
    "uncounted": ["splash_mha_fwd"],
    "bytes_accessed": 819e6,
    "cycles": None,
    "collectives": {"all-reduce": [3, 5_500_000]},
    "ideal": {"all-reduce": 5_000_000},
    "ideal_bytes": 5_000_000,
    "kernels": 1234,
    "n_by_n": ["f32[12,5330,5330]"],
    "lower_seconds": 1.0,
    "compile_seconds": 2.0,
}


class Stand:
    """Stands for the process that compiles."""

    def __init__(self, answer: dict):
        self.answer = answer

    def __call__(self, name: str) -> "Stand":
        return self

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def report(self, program: object) -> dict:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (REPORT, 0, ""),
        (REPORT | {"peak_bytes": 18_000_000_000, "fits": False}, 1, "18.000 GB of the 17.180 GB"),
        ({"error": "it does not fit: used 20g of 15.75g hbm", "exit_code": 1}, 1, "15.75g"),
        ({"error": "train.batch_size=6 cannot be divided", "exit_code": 2}, 2, "divided"),
    ],
)
def test_the_last_line_is_json_and_the_code_says_whether_it_fits(
    answer, code, message, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(aot, "Compiler", Stand(answer))
    assert guarded(lambda: aot.main(["--target", "v5e", "--json"])) == code
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]).items() >= answer.items()
    assert message in said.err
    if "error" not in answer:
        assert "1.00 ms" in said.out  # FLOPs, and bytes, by the data sheet
        assert "f32[12,5330,5330]" in said.out
        assert "ideally 5.00" in said.out


@pytest.mark.parametrize(
    ("said", "error", "fits"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
            " temporaries (38.28G) exceeds available HBM (15.75G).",
            "it does not fit: Ran out of memory on HBM, the total memory required for HLO"
            " temporaries (38.28G) exceeds available HBM (15.75G).",
            False,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.10G of 15.75G hbm."
            " Exceeded hbm capacity by 4.35G.\n\nTotal hbm usage >= 20.37G:",
            "it does not fit: Used 20.10G of 15.75G hbm.",
            False,
        ),
        ("Unsupported sequence length", "RuntimeError: Unsupported sequence length", None),
    ],
)
def test_what_the_compiler_says_becomes_one_message(said, error, fits) -> None:
    found = worker.failure(RuntimeError(said))
    assert (found["error"], found.get("fits"), found["exit_code"]) == (error, fits, 1)


def test_gpus_are_described_by_their_data_sheets() -> None:
    facts = {n: (c.memory // 10**9, c.bandwidth // 10**9, c.compute_capability)
             for n, c in CHIPS.items() if c.platform == "gpu"}  # fmt: skip
    assert facts == {
        "a100": (85, 2039, (8, 0)),  # 80 GB are 79.3 GiB
        "h100": (84, 3352, (9, 0)),
        "h200": (151, 4800, (9, 0)),
    }
