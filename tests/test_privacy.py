"""Who a patient is stays in the DICOM file, and pictures can be left out of every page."""

import io
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import runs
import short_runs
from pydicom.datadict import DicomDictionary, tag_for_keyword

from fmi_jax.artifacts.charts import PICTURES, Overlays
from fmi_jax.artifacts.result import Finding
from fmi_jax.cli import main
from fmi_jax.data.prepared import open_folder
from fmi_jax.data.preparing.images import decode_image
from fmi_jax.data.raw.drawn.dicom import write_dicom
from fmi_jax.errors import UserError
from fmi_jax.run import conclusion, experiment

NAME, UID, DATE = "QZXWV", "2.25.918273645546372819", "18591124"
SECRETS = (NAME, UID.rpartition(".")[2], DATE)
"""What must be nowhere but in the raw files: letters, digits and a date that nothing else has."""

VALUES = {
    **dict.fromkeys(("PN", "LO", "SH", "LT", "ST", "UC", "UT"), f"{NAME}^Jane"),
    **{"UI": UID, "DA": DATE, "DT": f"{DATE}101112", "AE": NAME, "UR": f"http://{NAME}"},
}
IMAGE = (0x0000, 0x0002, 0x0028, 0x5400, 0x7FE0)
"""Groups of elements that say how the file and its pixels are stored."""


def names() -> dict[str, str]:
    """A value for every element of the standard that can hold text about a patient."""
    return {
        keyword: VALUES[vr]
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items()
        if vr in VALUES and tag >> 16 not in IMAGE and keyword != "SOPClassUID" and not retired
    }


def write_named(path: Path, pixels: np.ndarray, **tags: object) -> None:
    """A DICOM file that names its patient everywhere: elements, private ones, the preamble."""
    write_dicom(path, pixels, **names(), **tags)
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0011, NAME, create=True).add_new(1, "LO", f"{NAME}^Jane")
    dataset.preamble = f"{NAME} {DATE}".encode().ljust(128, b"\0")
    dataset.save_as(path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 48 images of two classes, noise with a square in it."""
    folder = tmp_path_factory.mktemp("scans")
    rng, rows = np.random.default_rng(3), ["path,label"]
    for i in range(48):
        pixels = rng.integers(0, 100, (19, 19), np.uint8)
        pixels[:9, :9] += 120 * (i % 2)
        write_named(folder / f"{i}.dcm", pixels)
        rows.append(f"{i}.dcm,{('dark', 'bright')[i % 2]}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def secrets_in(data: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.lower().encode() in data.lower()]


def assert_silent(folder: Path) -> None:
    """No file of a folder has a secret, packed or not."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert not secrets_in(path.read_bytes()), path
    for path in folder.rglob("manifest.json"):
        dataset = open_folder(path.parent)
        for split in ("train", "val", "test"):
            assert not secrets_in(repr(dataset.ids(split)).encode())


def test_no_command_tells_who_a_patient_is(
    scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(names()) > 800
    assert secrets_in((scans / "0.dcm").read_bytes()) == [*SECRETS]
    table, data = str(scans / "table.csv"), tmp_path / "data"
    raw = ["csv", "--source", table, "--channels", "1", "--processes", "1"]
    assert main(["check-data", *raw]) == 0
    prepare = ["prepare", *raw, "--name", "scans", "--size", "16", "--data-dir", str(data)]
    assert main(prepare) == 0
    [card] = data.rglob("card.html")
    shown = card.read_bytes(), card.with_suffix(".png").read_bytes()
    assert b"data:image/jpeg" in shown[0]
    assert main([*prepare, "--no-thumbnails"]) == 0
    assert b"data:image/jpeg" not in card.read_bytes()
    assert b"Samples" not in card.read_bytes()
    assert b"Sizes of the raw images" in card.read_bytes()
    assert len(card.with_suffix(".png").read_bytes()) < len(shown[1])

    config = short_runs.config_of_squares(tmp_path)
    config.data.name, config.data.data_dir, config.train.max_steps = "scans", str(data), 2
    workdir = tmp_path / "run"
    experiment.run(config, workdir)
    page = workdir / "report.html"
    assert b"data:image/jpeg" in page.read_bytes()
    images = [str(scans / f"{i}.dcm") for i in range(3)]
    out = ["--workdir", str(workdir), "--out", str(tmp_path / "new.csv")]
    assert main(["predict", *images, *out]) == 0

    page.unlink()  # drawn again by the rerun of a finished run
    config.data.thumbnails = False
    experiment.run(config, workdir)
    assert b"data:image/jpeg" not in page.read_bytes()
    assert b"data:image/png" in page.read_bytes()  # of its numbers
    assert_silent(tmp_path)
    assert not secrets_in("".join(capfd.readouterr()).encode())


def test_charts_that_show_images_are_left_out() -> None:
    overlays = Overlays(names=["a"], images=np.zeros((1, 2, 2, 1), np.uint8), maps={})
    assert isinstance(overlays, PICTURES)
    found = Finding(
        judge="saliency",
        title="Where it looks",
        values={"cases": [1]},
        charts={"a.png": overlays},
        figures={"a.png": "Images.", "b.png": "Numbers."},
    )
    left = conclusion._without_pictures(found)
    assert (left.charts, left.figures, left.values) == ({}, {"b.png": "Numbers."}, found.values)


TEXT = ("PhotometricInterpretation", "VOILUTFunction", "WindowCenter", "WindowWidth",
        "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "PixelAspectRatio")  # fmt: skip
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel",
           "PixelRepresentation", "PlanarConfiguration", "PixelData")  # fmt: skip


def fragments(message: str) -> list[str]:
    """Parts of a secret, four letters or digits long, that a message quotes."""
    parts = [secret[i : i + 4] for secret in SECRETS for i in range(len(secret) - 3)]
    return [part for part in parts if part.lower() in message.lower()]


def damaged(path: Path) -> list[bytes]:
    """Variants of a DICOM file with a name in the place of each value, and with bytes astray."""
    variants, data, rng = [], path.read_bytes(), random.Random(7)
    for keyword in (*TEXT, *NUMBERS):
        for vr in ("LO", "PN", "DS", "IS", "CS", "UI", "UN", "SQ"):
            dataset = pydicom.dcmread(path)
            dataset.WindowCenter, dataset.WindowWidth = 40, 80
            tag = tag_for_keyword(keyword)
            assert tag is not None
            file = io.BytesIO()
            pydicom.dcmwrite(file, dataset)
            whole = file.getvalue()
            element = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
            at = whole.find(element)
            if at < 0:
                continue
            text = f"{NAME}^{DATE}".encode().ljust(16)
            long = vr in ("UN", "SQ")
            value = vr.encode() + (b"\0\0" if long else b"")
            value += len(text).to_bytes(4 if long else 2, "little") + text
            old = whole[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
            start = at + (8 if old else 6)
            size = int.from_bytes(whole[start : start + (4 if old else 2)], "little")
            end = start + (4 if old else 2) + size
            variants.append(whole[: at + 4] + value + whole[end:])
    for _ in range(400):
        variant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(128, len(variant))
            if rng.random() < 0.5:
                variant[at] = rng.randrange(256)
            else:  # what follows moves to where something else is expected
                del variant[at : at + rng.choice((1, 2, 4, 8))]
        variants.append(bytes(variant))
    syntax = data.find(b"1.2.840.10008.1.2.1")
    variants.append(data[:syntax] + f"1.2.{NAME}".encode().ljust(19) + data[syntax + 19 :])
    return variants


def test_messages_on_damaged_files_quote_no_name(scans: Path) -> None:
    said = []
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for data in damaged(scans / "0.dcm"):
            try:
                decode_image(data, channels=1)
            except UserError as error:
                said.append(str(error))
    assert len(said) > 150
    assert not [message for message in said if fragments(message)]


def test_nothing_is_said_aloud_of_damaged_files(scans: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user starts it: libraries may warn, and log."""
    rows = ["path,label"]
    for i, data in enumerate(damaged(scans / "0.dcm")[::7]):
        (tmp_path / f"{i}.dcm").write_bytes(data)
        rows.append(f"{i}.dcm,{i % 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    program = "import sys; from fmi_jax.cli import main; sys.exit(main())"
    command = ["check-data", "csv", "--source", tmp_path / "table.csv", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=runs.ROOT,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
    )
    assert done.returncode == 1
    assert "has problems" in done.stderr
    assert not fragments(done.stdout + done.stderr)
