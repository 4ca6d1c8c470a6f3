"""What tests look at of prepared data sets and of their making."""

from pathlib import Path

from fmi_jax.data.preparing import shard


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` that is not hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "/." not in f"/{path.relative_to(folder)}"
    }


def note_reads(monkeypatch) -> list[str]:
    """The names of the raw images that this process reads from now on, as they are read."""
    names, read_image = [], shard.read_image

    def noting(path, **options):
        names.append(path.stem)
        return read_image(path, **options)

    monkeypatch.setattr(shard, "read_image", noting)
    return names
