"""`fmi-jax models`: what there is, where it comes from, what is on disk."""

import re
import subprocess
import sys

import pytest
import runs

from fmi_jax.cli import main
from fmi_jax.models.registry import BACKBONES


def test_every_backbone_and_its_weights_are_listed(tmp_path, capsys):
    for tag in ("lvd142m", "mine.v2"):
        (tmp_path / f"dinov2_vitb14.{tag}.safetensors").touch()
    (tmp_path / "dinov2_vitb14_reg.lvd142m.safetensors.tmp").touch()
    assert main(["models", "--weights-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    entries = {entry.split()[0]: entry for entry in said.split("\n\n")[1:-1]}
    assert entries.keys() == BACKBONES.keys()
    for name, spec in BACKBONES.items():
        for source in spec.sources:
            for words in (source.tag, source.licence, source.url):
                assert words in entries[name]
    first, *rest = entries["dinov2_vitb14"].split("\n")
    assert first.split() == ["dinov2_vitb14", "86.6", "M", "14", "518", "768"]
    assert [line.split()[:2] for line in rest if "[" in line] == [
        ["[x]", "lvd142m"],
        ["[x]", "mine.v2"],
    ]
    assert "[x]" not in entries["dinov2_vitb14_reg"]
    addresses = [source.url for spec in BACKBONES.values() for source in spec.sources]
    for line in said.split("\n"):
        assert len(line) <= 80 or line.strip() in addresses or str(tmp_path) in line


@pytest.mark.parametrize("name", ["dinov2_vitb14_reg", "resnet_nano", "focal_tiny"])
def test_the_parameters_of_one_are_a_table(name, capsys):
    assert main(["models", name]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^\| (\S+) +\| (\(.*?\)) +\| ([\d,]+) +\|$", said, flags=re.MULTILINE)
    sizes = {name: int(size.replace(",", "")) for name, _, size in rows}
    assert len(sizes) == len(rows) > 40
    assert sum(sizes.values()) == BACKBONES[name].num_params
    assert f"{BACKBONES[name].num_params:,} parameters in {len(rows)} arrays" in said
    assert [row for row in said.split("\n") if row.startswith(name)]
    blocks = [int(row.split(".")[1]) for row in sizes if row.startswith("blocks.")]
    assert blocks == sorted(blocks)


def test_the_table_needs_no_tensorflow():
    code = (
        "import sys; from fmi_jax.cli import main; main(['models', 'resnet_nano'])\n"
        "assert not {'tensorflow', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=runs.ROOT, env=runs.environment())
