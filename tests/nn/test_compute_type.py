"""Which type the backbone computes in, by hardware."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.nn import hardware
from fmi_jax.rules import validate
from fmi_jax.run import runtime
from fmi_jax.run.session import Session

OLD = "compute capability {} has no bfloat16"
NO_INSTRUCTIONS = "this CPU has no instructions for it (AVX512-BF16, AMX)"


@pytest.fixture
def machine(monkeypatch):
    def pretend(platform, capability=None, instructions=()):
        monkeypatch.setattr(hardware, "platform", lambda: platform)
        monkeypatch.setattr(hardware, "compute_capability", lambda: capability)
        monkeypatch.setattr(hardware, "cpu_instructions", lambda: frozenset(instructions))

    return pretend


@pytest.mark.parametrize(
    ("platform", "capability", "auto"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", (7, 0), "float32"),  # V100
        ("gpu", (7, 5), "float32"),  # T4
        ("gpu", (8, 0), "bfloat16"),
        ("gpu", (10, 0), "bfloat16"),
        ("gpu", None, "bfloat16"),  # of AMD
    ],
)
def test_auto_is_bfloat16_where_the_hardware_has_it(platform, capability, auto, machine):
    machine(platform, capability, {"amx_bf16"})
    assert hardware.compute_type("auto") == jnp.dtype(auto)
    assert hardware.compute_type("float32") == jnp.float32
    assert hardware.compute_type("bfloat16") == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "platform", "capability", "instructions", "said"),
    [
        ("auto", "gpu", (7, 0), (), OLD.format("7.0")),
        ("bfloat16", "gpu", (7, 5), (), OLD.format("7.5")),
        ("float32", "gpu", (7, 5), (), None),
        ("auto", "gpu", (9, 0), (), None),
        ("bfloat16", "gpu", None, (), None),
        ("bfloat16", "tpu", None, (), None),
        ("auto", "cpu", None, (), None),
        ("bfloat16", "cpu", None, ("avx2", "fma"), NO_INSTRUCTIONS),
        ("bfloat16", "cpu", None, ("avx2", "avx512_bf16"), None),
        ("bfloat16", "cpu", None, ("amx_bf16",), None),
    ],
)
def test_a_run_begins_with_one_line_on_what_its_type_costs(
    name, platform, capability, instructions, said, machine
):
    machine(platform, capability, instructions)
    config = ExperimentConfig()
    config.backbone.dtype = name
    session = SimpleNamespace(
        config=config,
        info=SimpleNamespace(name="drawn", counts={"train": 7}),
        assembly=SimpleNamespace(spec=SimpleNamespace(name="vit")),
        protocol=SimpleNamespace(summary="linear probe"),
    )
    *notes, heading = Session.heading(session).splitlines()  # pyright: ignore[reportArgumentType]
    assert heading.startswith("vit, linear probe, on drawn")
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


@pytest.mark.parametrize(
    ("instructions", "said"),
    [(("avx512_bf16",), "bfloat16 takes about half the time"), ((), "bfloat16 would not pay")],
)
def test_doctor_says_whether_bfloat16_pays_on_this_cpu(instructions, said, machine):
    machine("cpu", None, instructions)
    assert runtime.compute_type().startswith("auto is float32; " + said)


def test_doctor_says_why_an_old_gpu_computes_in_float32(machine):
    machine("gpu", (7, 0))
    assert OLD.format("7.0") in runtime.compute_type()
    machine("gpu", (8, 0))
    assert runtime.compute_type() == "auto is bfloat16"


def test_instructions_are_those_that_the_system_names(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "Path", lambda _: info)
    read = hardware.cpu_instructions.__wrapped__
    assert read() == frozenset()
    info.write_text("model name\t: X\nflags\t\t: fpu avx512_bf16\n\nflags\t\t: fpu\n")
    assert read() == {"fpu", "avx512_bf16"}
    monkeypatch.setattr(hardware, "cpu_instructions", read)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not hardware.bfloat16_products()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert hardware.bfloat16_products()


def test_float16_is_refused_with_the_reason():
    config = ExperimentConfig()
    config.backbone.dtype = "float16"
    with pytest.raises(UsageError, match=r"65504.*loss scaling; expected bfloat16 or float32"):
        validate(config)


def test_products_of_float32_are_float32_on_every_back_end() -> None:
    runtime.configure()
    product = jax.jit(jnp.matmul)
    lowered = product.lower(jnp.ones((2, 3)), jnp.ones((3, 5))).as_text()
    assert lowered.count("HIGHEST") == 2
