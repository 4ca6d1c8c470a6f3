"""A new family is one file and its two lines in the registry: the contract tests find it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = (
    *("test_attentive_probe.py", "test_cka.py", "test_layer_decay.py", "test_lora.py"),
    *("test_models.py", "test_protocols.py", "test_stacked.py", "test_training_step.py"),
)
TINY = '    tiny = (Tiny("toy", ARCH, 35),)\n'
FAMILY = (
    '''"""A vision transformer that attends in windows and has neither [cls] nor positions."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from fmi_jax.models.base import Backbone, BackboneSpec, Tiny, patch_grid
from fmi_jax.models.vit import TransformerArch
from fmi_jax.nn.conv import PatchEmbed
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.transformer import Block, linear_rates
from fmi_jax.nn.window_attention import WindowAttention
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyArch(TransformerArch):
    window: int


ARCH = ToyArch(
    in_channels=3,
    patch_size=5,
    width=12,
    depth=3,
    num_heads=3,
    mlp_width=17,
    norm_eps=1e-6,
    window=2,
)


class Toy(Backbone[ToyArch]):
'''
    + TINY
    + """
    def __init__(self, arch, execution, *, rngs):
        super().__init__(arch, execution)
        made = {"dtype": execution.dtype, "rngs": rngs}
        self.patch_embed = PatchEmbed(arch.in_channels, arch.width, arch.patch_size, **made)
        self.blocks = nnx.List(
            Block(
                arch.width,
                attn=WindowAttention(
                    arch.width, arch.num_heads, window=arch.window, shift=False, **made
                ),
                mlp=Mlp(arch.width, arch.mlp_width, **made),
                eps=arch.norm_eps,
                drop_path=rate,
            )
            for rate in linear_rates(execution.drop_path, arch.depth)
        )
        self.norm = LayerNorm(arch.width, eps=arch.norm_eps)

    def grid(self, height, width):
        return patch_grid(height, width, self.arch.patch_size)

    def embed(self, images):
        self.grid(*images.shape[1:3])
        return self.patch_embed(images)

    def readout(self, x, block, grid):
        x = self.norm(x)
        return Features(x.mean(axis=(1, 2), dtype=jnp.float32), x, None)


SPECS = (
    BackboneSpec(
        name="toy_nano",
        family=Toy,
        arch=ARCH,
        num_params=4344,
        patch_size=5,
        image_size=35,
        sources=(),
    ),
)
"""
)


def run_tests(
    family: str, folder: Path, chosen: str, *tests: str
) -> subprocess.CompletedProcess[str]:
    """The chosen tests of this checkout, over a copy of the package to which `family` was added."""
    shutil.copytree(ROOT / "fmi_jax", folder / "fmi_jax", ignore=shutil.ignore_patterns("__*__"))
    models = folder / "fmi_jax" / "models"
    (models / "toy.py").write_text(family)
    registry = (models / "registry.py").read_text()
    registry = registry.replace("import (\n", "import (\n    toy,\n", 1)
    registry = registry.replace("    (\n", "    (\n        *toy.SPECS,\n", 1)
    (models / "registry.py").write_text(registry)
    options = ("-vv", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "-k", chosen)
    files = [next((ROOT / "tests").rglob(test)) for test in tests]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )


def test_a_family_in_a_file_of_its_own_is_found_by_every_contract_test(tmp_path: Path) -> None:
    done = run_tests(FAMILY, tmp_path, "toy", *CONTRACTS)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"(test_\w+\.py)::(\w+)\[[\w-]*toy[\w-]*\] PASSED", done.stdout)
    assert {file for file, _ in passed} == set(CONTRACTS), done.stdout
    assert ("test_models.py", "test_spec_describes_the_network_it_builds") in passed


def test_a_family_without_a_tiny_network_is_an_error(tmp_path: Path) -> None:
    done = run_tests(FAMILY.replace(TINY, ""), tmp_path, "a_tiny_network", "test_models.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_every_family_has_a_tiny_network FAILED" in done.stdout
