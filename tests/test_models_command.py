"""`fmi-jax models`: what there is, where it comes from, what is on disk."""

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
