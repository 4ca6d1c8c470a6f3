"""Draws a small raw CBIS-DDSM, mammograms with masses or calcifications, as TCIA provides it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fmi_jax import atomic
from fmi_jax.data.raw.drawn.dicom import SOP_CLASS, write_dicom
from fmi_jax.data.raw.drawn.folder import draw_once

_NOTE = """\
Synthetic mammograms: {count} images, seed {seed}.

Drawn by fmi_jax.data.raw.drawn.cbis_ddsm in the raw layout of CBIS-DDSM. They show no patient;
what is malignant is drawn larger and brighter than what is benign.
For trying out and testing software only.
"""

_TAIL = ("assessment", "pathology", "subtlety")
_FILES = ("image file path", "cropped image file path", "ROI mask file path")
_COLUMNS = {
    "Mass": (
        *("patient_id", "breast_density", "left or right breast", "image view"),
        *("abnormality id", "abnormality type", "mass shape", "mass margins", *_TAIL, *_FILES),
    ),
    "Calc": (
        *("patient_id", "breast density", "left or right breast", "image view"),
        *("abnormality id", "abnormality type", "calc type", "calc distribution"),
        *(*_TAIL, *_FILES),
    ),
}
_DESCRIPTION = {
    "Mass": (3, "mass", "OVAL", "CIRCUMSCRIBED"),
    "Calc": (3, "calcification", "PLEOMORPHIC", "CLUSTERED"),
}


@draw_once(_NOTE, count=40)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` mammograms of half as many patients, and their tables, into `folder`.

    Every third patient has a second abnormality. One mammogram is listed for masses in training
    and for calcifications in test, as in the real set.

    Raises:
      UserError: the folder holds something else.
    """
    rng = np.random.default_rng(seed)
    download = _Download(folder, rng, [], {})
    for i in range(count // 2):
        kind = ("Mass", "Calc")[i % 2]
        part = "Test" if i % 5 == 4 else "Training"
        pathologies = [("BENIGN", "MALIGNANT")[i // 2 % 2]]
        if i % 3 == 0:
            pathologies.append("BENIGN_WITHOUT_CALLBACK")
        for view in ("CC", "MLO"):
            film = f"P_{i + 1:05}", ("LEFT", "RIGHT")[i % 3 % 2], view
            pixels, findings = _draw_film(rng, kind, pathologies)
            _write_film(download, kind, part, film, pixels, findings)
            if i == 0 and view == "CC":
                _write_film(download, "Calc", "Test", film, pixels, findings)
    for (kind, part), rows in download.tables.items():
        split = {"Training": "train", "Test": "test"}[part]
        name = f"{kind.lower()}_case_description_{split}_set.csv"
        (folder / name).write_bytes(atomic.csv_bytes([_COLUMNS[kind], *rows]))
    (folder / "metadata.csv").write_bytes(atomic.csv_bytes([_METADATA, *download.series]))


_Finding = tuple[str, tuple[slice, slice]]
"""Pathology of an abnormality, and a box around it."""


def _draw_film(
    rng: np.random.Generator, kind: str, pathologies: list[str]
) -> tuple[np.ndarray, list[_Finding]]:
    """Draw a mammogram, uint16 `[h, w]`; also returns its abnormalities."""
    height, width = (int(n) for n in rng.integers((75, 60), (92, 74)))
    film = Image.new("L", (width, height), 8)
    pen = ImageDraw.Draw(film)
    pen.ellipse((-width * 0.7, height * 0.05, width * 0.75, height * 0.95), fill=90)
    for x, y in rng.uniform((0, 0.3), (0.4, 0.7), (7, 2)) * (width, height):
        pen.ellipse((x - 9, y - 5, x + 9, y + 5), fill=int(rng.integers(95, 125)))
    film = film.filter(ImageFilter.GaussianBlur(2))
    pen = ImageDraw.Draw(film)
    findings: list[_Finding] = []
    for number, pathology in enumerate(pathologies):
        malignant = pathology == "MALIGNANT"
        radius = rng.uniform(7, 9) if malignant else rng.uniform(3, 5)
        level = int(rng.integers(190, 230) if malignant else rng.integers(140, 165))
        x = width * rng.uniform(0.25, 0.4)
        y = height * (0.35 + 0.3 * number)
        if kind == "Mass":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=level)
        else:
            for u, v in rng.normal(0, radius / 2, (25, 2)):
                pen.rectangle((x + u, y + v, x + u + 1, y + v + 1), fill=level)
        reach = round(1.5 * radius)
        rows, columns = (slice(max(round(at) - reach, 0), round(at) + reach + 1) for at in (y, x))
        findings.append((pathology, (rows, columns)))
    pixels = np.asarray(film, float) * 257 + rng.normal(0, 900, (height, width))
    return np.clip(pixels, 0, 0xFFFF).astype(np.uint16), findings


class _Download(NamedTuple):
    """Folder that is being written, and the rows of its tables so far."""

    folder: Path
    rng: np.random.Generator
    series: list[tuple[Any, ...]]
    tables: dict[tuple[str, str], list[tuple[Any, ...]]]


def _write_film(
    download: _Download,
    kind: str,
    part: str,
    film: tuple[str, str, str],
    pixels: np.ndarray,
    findings: list[_Finding],
) -> None:
    patient, breast, view = film
    case = f"{kind}-{part}_{patient}_{breast}_{view}"
    (file,) = _write_series(download, case, "full mammogram images", [pixels])
    rows = download.tables.setdefault((kind, part), [])
    for number, (pathology, box) in enumerate(findings, start=1):
        mask = np.zeros(pixels.shape, np.uint8)
        mask[box] = 255
        crop = pixels[box]
        lesion = f"{case}_{number}"
        # Most crops and masks share a series, in either order; some have one each.
        if view == "MLO" and kind == "Mass":
            (crop_file,) = _write_series(download, lesion, "cropped images", [crop])
            (mask_file,) = _write_series(download, lesion, "ROI mask images", [mask])
        elif kind == "Mass":
            crop_file, mask_file = _write_series(download, lesion, "ROI mask images", [crop, mask])
        else:
            mask_file, crop_file = _write_series(download, lesion, "cropped images", [mask, crop])
        density, *described = _DESCRIPTION[kind]
        # Second files of a series end with a line break, as in the real tables.
        files = [path + "\n" * path.endswith("1.dcm") for path in (file, crop_file, mask_file)]
        rows.append((patient, density, breast, view, number, *described, 4, pathology, 3, *files))


def _write_series(
    download: _Download, case: str, description: str, images: list[np.ndarray]
) -> list[str]:
    """Write the images of one series; returns their paths as the tables give them."""
    study, series = _uid(download.rng), _uid(download.rng)
    where = (
        Path("CBIS-DDSM")
        / case
        / f"07-20-2016-DDSM-NA-{study[-5:]}"
        / f"1.000000-{description}-{series[-5:]}"
    )
    folder = download.folder / where
    folder.mkdir(parents=True)
    for number, pixels in enumerate(images, start=1):
        write_dicom(
            folder / f"1-{number}.dcm",
            pixels,
            Modality="MG",
            BodyPartExamined="BREAST",
            SOPInstanceUID=_uid(download.rng),
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            SeriesDescription=description,
            InstanceNumber=number,
            PatientID=case,
        )
    location = ".\\" + str(where).replace("/", "\\")
    download.series.append(
        (
            *(series, "CBIS-DDSM", "", "", case, study, "", "07-20-2016", description, "", "MG"),
            *("Secondary Capture Image Storage", SOP_CLASS, len(images)),
            *("8.00 KB", location, "2024-01-01T00:00:00.0"),
        )
    )
    return [f"{case}/{study}/{series}/{i:06}.dcm" for i in range(len(images))]


def _uid(rng: np.random.Generator) -> str:
    return "1.3.6.1.4.1.9590.100.1.2." + "".join(map(str, rng.integers(1, 10, 38)))


_METADATA = (
    *("Series UID", "Collection", "3rd Party Analysis", "Data Description URI", "Subject ID"),
    *("Study UID", "Study Description", "Study Date", "Series Description", "Manufacturer"),
    *("Modality", "SOP Class Name", "SOP Class UID", "Number of Images", "File Size"),
    *("File Location", "Download Timestamp"),
)
