"""Images and DICOM headers whose parts are each sound, and together seldom are."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
from hypothesis import given, settings, strategies as st
from PIL import Image
from pydicom.datadict import dictionary_VR, tag_for_keyword

from fmi_jax.data.preparing.images import decode_image
from fmi_jax.data.raw.drawn.dicom import write_dicom
from fmi_jax.errors import UserError, is_plain


def assert_image_or_message(data: bytes) -> None:
    refused, image = "", None
    try:
        image = decode_image(data, channels=3)
    except UserError as error:
        refused = str(error)
    assert is_plain(refused), refused
    assert refused or (image is not None and image.mode == "RGB" and min(image.size) > 0)


def chunk(name: bytes, data: bytes, sound: bool) -> bytes:
    crc = zlib.crc32(name + data) if sound else 0
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 16, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
HEADERS = st.builds(
    lambda *x: struct.pack(">IIBBBBB", x[0], x[1], *(v % 256 for v in x[2:])), *[NUMBERS] * 7
)
CHUNKS = st.tuples(
    st.sampled_from(
        [b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND", b"zTXt", b"eXIf", b"acTL", b"fcTL"]
    ),
    st.one_of(
        HEADERS,
        st.binary(max_size=40),
        st.binary(max_size=200).map(zlib.compress),
        st.just(zlib.compress(bytes(10_000_000))),
    ),
    st.booleans(),
)


@settings(max_examples=150)
@given(first=HEADERS, chunks=st.lists(CHUNKS, max_size=5), sound=st.booleans())
def test_png_chunks(first: bytes, chunks: list, sound: bool) -> None:
    start = chunk(b"IHDR", first, True) if sound else b""
    data = b"\x89PNG\r\n\x1a\n" + start + b"".join(chunk(*each) for each in chunks)
    assert_image_or_message(data)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["TIFF", "BMP", "WEBP", "JPEG", "PNG"]),
    mode=st.sampled_from(["RGB", "L", "P", "CMYK", "I;16", "1", "F", "RGBA", "I"]),
    patches=st.lists(
        st.tuples(st.integers(0, 10**4), st.sampled_from(["<I", ">I", "<H", ">H", "B"]), NUMBERS),
        max_size=3,
    ),
)
def test_fields_of_headers(kind: str, mode: str, patches: list[tuple[int, str, int]]) -> None:
    file = io.BytesIO()
    try:
        Image.fromarray(np.full((5, 7, 3), 90, np.uint8)).convert(mode).save(file, kind)
    except (OSError, ValueError):
        return  # not a mode of this format
    data = bytearray(file.getvalue())
    for at, form, number in patches:
        size = struct.calcsize(form)
        at %= min(len(data), 200)
        data[at : at + size] = struct.pack(form, number % 256**size)
    assert_image_or_message(bytes(data))


TAGS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation", "NumberOfFrames"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "PixelData"),
)
TEXTS = st.sampled_from(
    [
        *("", "0", "-1", "1", "8", "1e400", "nan", "1\\\\2", "X", "MONOCHROME1", "PALETTE COLOR"),
        *("RGB", "YBR_FULL", "SIGMOID", "LINEAR_EXACT", "\\", "٣", "9" * 300),
    ]
)


SYNTAXES = [
    f"1.2.840.10008.1.2{x}" for x in (".1", "", ".2", ".5", ".4.50", ".4.80", ".4.90", ".9")
]


def of_syntax(name: str) -> bytes:
    """The element that names a transfer syntax."""
    value = name.encode() + b"\0" * (len(name) % 2)
    return b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value


@settings(max_examples=250)
@given(
    tags=st.dictionaries(st.sampled_from(TAGS), st.one_of(NUMBERS, TEXTS, st.none()), max_size=4),
    nested=st.sampled_from(["", "ModalityLUTSequence", "VOILUTSequence"]),
    lut=st.tuples(NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=9)),
    syntax=st.sampled_from(SYNTAXES),
)
def test_dicom_headers(
    tmp_path_factory, tags: dict[str, int | str | None], nested: str, lut: tuple, syntax: str
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "one.dcm"
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    write_dicom(path, pixels, WindowCenter=9, WindowWidth=9, SOPInstanceUID="1.2.3")
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None
        dataset.pop(tag, None)
        if value is None:
            continue
        vr = dictionary_VR(tag)[:2]
        raw = value.to_bytes(8, "little")[:2] if isinstance(value, int) else value.encode()
        if isinstance(value, int) and vr in ("DS", "IS", "CS"):
            raw = str(value).encode()
        dataset[tag] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), vr, len(raw), raw + b" " * (len(raw) % 2), 0, False, True
        )
    if nested:
        item = pydicom.Dataset()
        entries, first, bits, table = lut
        item.add_new(0x00283002, "US", [entries % 2**16, first % 2**16, bits % 2**16])
        item.add_new(0x00283006, "OW", table + b"\0" * (len(table) % 2))
        setattr(dataset, nested, [item])
    file = io.BytesIO()
    try:
        pydicom.dcmwrite(file, dataset)
    except (ValueError, TypeError, AttributeError, OverflowError, NotImplementedError):
        return  # a header that pydicom does not write
    assert_image_or_message(file.getvalue().replace(of_syntax(SYNTAXES[0]), of_syntax(syntax)))
