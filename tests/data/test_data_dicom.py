import contextlib
import functools
import io
import math
import types
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import tolerances
from hypothesis import given, settings, strategies as st
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.encaps import encapsulate, generate_frames

from fmi_jax.data.preparing import dicom, pixel_limit
from fmi_jax.data.preparing.images import decode_image, load_image, read_image
from fmi_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

# The files that come with pydicom, by what is in them. Each group shows one image.
MR = [f"MR_small{kind}.dcm" for kind in (
    "", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded"
)]  # fmt: skip
BARS = [f"SC_rgb_{kind}.dcm" for kind in ("rle", "rle_16bit", "gdcm_KY", "jpeg_gdcm")]
BARS_LOSSY = [f"SC_{kind}.dcm" for kind in (
    "rgb_jls_lossy_line", "rgb_jls_lossy_sample", "rgb_jpeg_dcmtk", "rgb_jpeg_lossy_gdcm",
    "ybr_full_422_uncompressed", "rgb_dcmtk_+eb+cr", "rgb_dcmtk_+eb+cy+n1", "rgb_dcmtk_+eb+cy+n2",
    "rgb_dcmtk_+eb+cy+np", "rgb_dcmtk_+eb+cy+s2", "rgb_dcmtk_+eb+cy+s4",
)]  # fmt: skip
TWINS = [
    MR,
    BARS,
    ["liver_1frame.dcm", "liver_expb_1frame.dcm"],
    ["SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"],
    ["SC_rgb_jpeg_dcmd.dcm", "SC_rgb_jpeg.dcm", "SC_jpeg_no_color_transform.dcm"],
    ["SC_rgb_jpeg_app14_dcmd.dcm", "SC_jpeg_no_color_transform_2.dcm"],
]
WINDOWED = ["MR_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm",
            "6154", "17106", "2062", "15820"]  # fmt: skip
UNWINDOWED = ["JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "image_dfl.dcm",
              "liver_1frame.dcm"]  # fmt: skip
REFUSED = {
    "CT_small.dcm": "no window in the header, and of the range of 16 bits the pixels span 9 of 256",
    "JPEG2000.dcm": "no window in the header",
    "JPGExtended.dcm": "no window in the header",
    "JPEG2000-embedded-sequence-delimiter.dcm": "damaged or cut short",  # overwritten on purpose
    "MR_truncated.dcm": "cut short .*8130 vs 8192 bytes",
    "SC_rgb_rle_2frame.dcm": "2 frames; expected a single image",
    "examples_ybr_color.dcm": "30 frames",
    "SC_rgb_rle_32bit.dcm": "pixels of 32 bits; expected 1 to 16",
    "rtdose_1frame.dcm": "pixels of 32 bits",
    "rtplan.dcm": r"DICOM \(RT Plan Storage\) without PixelData.*: cut short, or not an image",
    "test-SR.dcm": r"DICOM \(Comprehensive SR Storage\) without PixelData",
    "nested_priv_SQ.dcm": "without Rows, Columns",
    "meta_missing_tsyntax.dcm": "no transfer syntax, which is not read; expected uncompressed, RLE",
    "badVR.dcm": "damaged or cut short",
    "no_meta.dcm": "not an image .* expected PNG, .*, DICOM",
    "DICOMDIR": "Media Storage Directory Storage",
}


@functools.cache
def real(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path, f"{name} does not come with this pydicom"
    return Path(path).read_bytes()


def dataset(data: bytes) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(data))


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data, channels=3)
    assert image.mode == "RGB"
    return np.asarray(image)


def shown(value: int, ds: pydicom.Dataset) -> int:
    """The grey level of one stored value, by the formulas of PS3.3 C.11 in exact arithmetic."""

    def number(name: str) -> Fraction:
        found = ds[name].value
        return Fraction(str(found[0] if ds[name].VM > 1 else found))

    half = Fraction(1, 2)
    value = Fraction(int(value))
    if "RescaleSlope" in ds:
        value = value * number("RescaleSlope") + number("RescaleIntercept")
    if "WindowCenter" in ds:
        centre, width = number("WindowCenter"), number("WindowWidth")
        if ds.get("VOILUTFunction", "LINEAR") == "LINEAR":
            if value <= centre - half - (width - 1) / 2:
                y = Fraction(0)
            elif value > centre - half + (width - 1) / 2:
                y = Fraction(1)
            else:
                y = (value - (centre - half)) / (width - 1) + half
        else:
            y = min(max((value - centre) / width + half, Fraction(0)), Fraction(1))
    else:
        assert "RescaleSlope" not in ds
        low = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
        y = (value - low) / (2**ds.BitsStored - 1)
    level = min(math.floor(256 * y), 255)
    return 255 - level if ds.PhotometricInterpretation == "MONOCHROME1" else level


def shown_pixels(stored: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    values, places = np.unique(stored, return_inverse=True)
    return np.array([shown(v, ds) for v in values])[places].reshape(stored.shape)


@pytest.mark.parametrize("name", WINDOWED + UNWINDOWED)
def test_grey_is_what_the_standard_s_formulas_give(name):
    ds = dataset(real(name))
    grey = np.asarray(decode_image(real(name), channels=1))
    np.testing.assert_array_equal(grey, shown_pixels(ds.pixel_array, ds))
    np.testing.assert_array_equal(decoded(real(name)), np.dstack([grey] * 3))


@pytest.mark.parametrize("names", TWINS, ids=lambda names: names[0])
def test_one_image_is_the_same_in_every_lossless_transfer_syntax(names):
    first = decoded(real(names[0]))
    assert np.ptp(first) > 50
    for name in names[1:]:
        np.testing.assert_array_equal(decoded(real(name)), first, err_msg=name)


@pytest.mark.parametrize("name", BARS_LOSSY)
def test_lossy_colours_are_the_right_ones(name):
    middles = slice(5, None, 10)  # at the edges of the bars, chroma is that of both
    ours, original = (decoded(real(n))[middles].astype(int) for n in (name, BARS[0]))
    assert np.abs(ours - original).max() <= tolerances.DICOM_LOSSY_LEVELS


def test_uncompressed_colours_are_the_bytes_of_the_file():
    for name in ("examples_rgb_color.dcm", "ExplVR_BigEnd.dcm"):
        ds = dataset(real(name))
        stored = np.frombuffer(ds.PixelData, np.uint8)
        shape = (ds.Rows, ds.Columns, 3)
        if ds.PlanarConfiguration:
            stored = stored.reshape(3, ds.Rows, ds.Columns).transpose(1, 2, 0)
        np.testing.assert_array_equal(decoded(real(name)), stored.reshape(shape))


def test_palettes_are_looked_up():
    ds = dataset(real("examples_palette.dcm"))
    tables = [getattr(ds, f"{c}PaletteColorLookupTableData") for c in ("Red", "Green", "Blue")]
    entries, first, bits = ds.RedPaletteColorLookupTableDescriptor
    assert (len(tables[0]), first, bits) == (2 * (entries or 2**16), 0, 16)
    colours = np.stack([np.frombuffer(table, "<u2") >> 8 for table in tables], axis=1)
    expected = colours[np.frombuffer(ds.PixelData, np.uint8).reshape(ds.Rows, ds.Columns)]
    np.testing.assert_array_equal(decoded(real("examples_palette.dcm")), expected)


def test_jpeg_colours_are_pillow_s():
    name = "SC_rgb_small_odd_jpeg.dcm"
    stream = next(generate_frames(dataset(real(name)).PixelData, number_of_frames=1))
    expected = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")).astype(int)
    assert np.abs(decoded(real(name)) - expected).max() <= tolerances.COLOUR_SPACE_LEVELS


@pytest.mark.parametrize("name", REFUSED)
def test_real_files_that_hold_no_single_image_are_refused_with_the_reason(name):
    with pytest.raises(UserError, match=REFUSED[name]):
        decoded(real(name))


def test_every_real_file_is_an_image_of_its_size_or_refused():
    images = 0
    for path in map(Path, get_testdata_files()):
        with contextlib.suppress(UserError, IsADirectoryError):
            data = path.read_bytes()
            shape = decoded(data).shape
            ds = dataset(data)
            assert shape == (ds.Rows, ds.Columns, 3), path
            images += 1
    assert images >= 70


def written(
    pixels: np.ndarray, syntax: uid.UID = uid.ExplicitVRLittleEndian, frame: bytes = b"", **tags
) -> bytes:
    """A DICOM file of these stored values, or of the compressed `frame`, with further `tags`."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.itemsize
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.HighBit = ds.BitsStored - 1
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    ds.PixelData = (
        encapsulate([frame]) if frame else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    )
    ds["PixelData"].VR = "OB" if frame or pixels.itemsize == 1 else "OW"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_of_16_bits_without_a_window_the_high_byte_is_kept(photometric):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    grey = decoded(written(values, PhotometricInterpretation=photometric))[..., 0]
    expected = values >> 8
    np.testing.assert_array_equal(grey, 255 - expected if photometric[-1] == "1" else expected)
    colours = np.dstack([values, values[::-1], values.T])
    np.testing.assert_array_equal(decoded(written(colours)), colours >> 8)


@st.composite
def _grey_files(draw):
    bits, signed = draw(st.integers(1, 16)), draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    some = draw(st.lists(st.integers(low, high), min_size=5, max_size=5))
    tags = {
        "BitsStored": bits,
        "PhotometricInterpretation": draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
    }
    if draw(st.booleans()):
        near = st.integers(2 * low - 9, 2 * high + 9)
        tags |= {"WindowCenter": draw(near), "WindowWidth": draw(st.integers(1, 2 * 2**bits))}
        if draw(st.booleans()):
            tags["WindowCenter"] = [tags["WindowCenter"], 3]  # alternatives: the first counts
            tags["WindowWidth"] = [tags["WindowWidth"], 5]
        tags["VOILUTFunction"] = draw(st.sampled_from(["LINEAR", "LINEAR_EXACT"]))
        if draw(st.booleans()):
            tags["RescaleSlope"] = draw(st.sampled_from(["1", "0.25", "-2"]))
            tags["RescaleIntercept"] = draw(st.sampled_from(["0", "-1024", "0.5"]))
    return np.array([[low, high, *some]], kind), tags


@settings(max_examples=150)
@given(_grey_files())
def test_any_bit_depth_sign_and_window_gives_the_standard_s_level(file):
    pixels, tags = file
    data = written(pixels, **tags)
    expected = shown_pixels(pixels, dataset(data))
    if np.ptp(expected):
        np.testing.assert_array_equal(decoded(data)[..., 0], expected)
    else:  # a window beside all values
        with pytest.raises(UserError, match=f"makes every pixel {expected.flat[0]},"):
            decoded(data)


def test_sigmoid_windows():
    values = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    tags = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 800}
    grey = decoded(written(values, VOILUTFunction="SIGMOID", **tags))[..., 0]
    expected = [math.floor(256 / (1 + math.exp(-4 * (int(v) - 2000) / 800))) for v in values.flat]
    np.testing.assert_array_equal(grey.reshape(-1), np.minimum(expected, 255))


def _table(entries: int, first: int, bits: int, raw: bool, order: str) -> pydicom.Dataset:
    values = np.random.default_rng(entries).integers(0, 2**bits, entries)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries % 2**16, first, bits])
    data = values.astype(f"{order}u2").tobytes() if raw else values.tolist()
    item.add_new("LUTData", "OW" if raw else "US", data)
    return item


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize(("entries", "first", "bits"), [(300, 20, 8), (4096, 0, 12), (77, -9, 16)])
def test_tables_are_looked_up_and_held_at_their_ends(entries, first, bits, syntax, raw):
    item = _table(entries, first, bits, raw, ">" if syntax == uid.ExplicitVRBigEndian else "<")
    table = np.frombuffer(item.LUTData, ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2") \
        if raw else np.array(item.LUTData)  # fmt: skip
    kind = np.int16 if first < 0 else np.uint16
    stored = np.linspace(-500 if first < 0 else 0, 5000, 35).astype(kind).reshape(5, 7)
    values = table[[min(max(int(v) - first, 0), entries - 1) for v in stored.flat]].reshape(5, 7)

    voi = decoded(written(stored, syntax, VOILUTSequence=[item]))[..., 0]
    scaled = [min(256 * int(v) // (2**bits - 1), 255) for v in values.flat]
    np.testing.assert_array_equal(voi.reshape(-1), scaled)

    width = 25 * 2 ** (bits - 5)  # on what the modality table gives
    window = {"WindowCenter": f"{width / 2 + 0.5}", "WindowWidth": f"{width + 1}"}
    modality = decoded(written(stored, syntax, ModalityLUTSequence=[item], **window))[..., 0]
    scaled = [min(256 * min(int(v), width) // width, 255) for v in values.flat]
    np.testing.assert_array_equal(modality.reshape(-1), scaled)


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_an_item_without_a_table_changes_nothing(name):
    stored = np.arange(35, dtype=np.uint16).reshape(5, 7)
    window = {"WindowCenter": "17.5", "WindowWidth": "35"}
    empty = pydicom.Dataset()
    nothing = pydicom.Dataset()
    nothing.add_new("LUTDescriptor", "US", None)
    expected = decoded(written(stored, uid.ExplicitVRLittleEndian, **window))
    for item in (empty, nothing):
        file = written(stored, uid.ExplicitVRLittleEndian, **{name: [item]}, **window)
        np.testing.assert_array_equal(decoded(file), expected)


def test_jpeg_2000_that_pillow_refuses_is_decoded_by_another_library(monkeypatch):
    pixels = decoded(real("GDCMJ2K_TextGBR.dcm"))
    assert pixels.shape == (400, 400, 3)
    data = next(generate_frames(dataset(real("GDCMJ2K_TextGBR.dcm")).PixelData, number_of_frames=1))
    np.testing.assert_array_equal(pixels, imagecodecs.jpeg2k_decode(data))
    monkeypatch.setattr(dicom.dicom_codecs, "is_available", lambda syntax: False)
    with pytest.raises(UserError, match=r"damaged or cut short .pillow: broken data stream"):
        decoded(real("GDCMJ2K_TextGBR.dcm"))


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_12_bit_jpeg_is_decoded(name):
    ds = dataset(real(name))
    ds.WindowCenter, ds.WindowWidth = 128, 256  # each of the lowest values is a level
    file = io.BytesIO()
    ds.save_as(file)
    pixels = decoded(file.getvalue())[..., 0]
    # Two values of this file as pydicom's tests have them from another decoder.
    assert (pixels[420, 140], pixels[230, 120]) == (244, 95)


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_lossless_streams_are_decoded(syntax, kind):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (31, 53)).astype(kind)
    if syntax == uid.JPEGLSLossless:
        stream = imagecodecs.jpegls_encode(pixels)
    else:
        stream = imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=8 * pixels.itemsize)
    data = written(pixels, syntax, frame=stream)
    np.testing.assert_array_equal(decoded(data), decoded(written(pixels)))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"WindowCenter": 9, "WindowWidth": 0}, "window width 0; expected 1 or more"),
        (
            {"WindowCenter": 9, "WindowWidth": 2, "VOILUTFunction": "X"},
            "unknown VOI LUT function; expected LINEAR",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 7}, "every stored value means 7; .* other than 0"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"WindowCenter": "nan", "WindowWidth": 2}, "WindowCenter nan; expected a finite number"),
        ({"WindowCenter": 9, "WindowWidth": "inf"}, "WindowWidth inf; expected a finite number"),
        ({"RescaleSlope": "1e999", "RescaleIntercept": 0}, "RescaleSlope inf; expected a finite"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, "exceed every number"),
        (
            {"WindowCenter": "1e300", "WindowWidth": "1e300"},
            "header makes every pixel 0, of stored values from 0 to 2000; expected one that shows",
        ),
        (
            {"PhotometricInterpretation": "HSV"},
            "photometric interpretation HSV; expected MONO.*RGB",
        ),
        ({"PhotometricInterpretation": "DOE"}, "photometric interpretation unknown; expected MONO"),
        ({"BitsStored": 9}, "pixel values outside the 9 bits that the header gives them"),
        ({"Rows": 20_000, "Columns": 20_000}, "20000 x 20000 pixels, more than 134 megapixels"),
        ({"Rows": 0}, "5 x 0 pixels; expected at least one"),
    ],
)
def test_headers_that_say_nothing_sensible_are_refused(tags, message):
    pixels = np.linspace(0, 2000, 35).astype(np.uint16).reshape(7, 5)
    frame = imagecodecs.jpegls_encode(pixels)  # native values are cut to their bits by pydicom
    with pytest.raises(UserError, match=message):
        decoded(written(pixels, uid.JPEGLSLossless, frame=frame, **tags))


def test_transfer_syntaxes_that_are_not_read_are_named():
    pixels = np.zeros((5, 7), np.uint8)
    with pytest.raises(UserError, match=r"DICOM with MPEG2 .*which is not read; expected unc"):
        decoded(written(pixels, uid.MPEG2MPML, frame=b"film"))


def test_a_missing_decoder_is_named_with_its_package(monkeypatch):
    none = types.SimpleNamespace(available_plugins=())
    monkeypatch.setattr(dicom, "get_decoder", lambda syntax: none)
    with pytest.raises(UserError, match=r"JPEG-LS Lossless .* pip install imagecodecs"):
        decoded(real("MR_small_jpeg_ls_lossless.dcm"))
    assert decoded(real("MR_small.dcm")).any()  # needs none


def test_a_deflated_bomb_is_refused(monkeypatch):
    decoded(real("image_dfl.dcm"))
    monkeypatch.setattr(dicom, "MAX_PIXELS", 30_000)
    with pytest.raises(UserError, match="more than 0 MB when decompressed"):
        decoded(real("image_dfl.dcm"))
    assert pixel_limit.MAX_PIXELS > 30_000


SYNTAXES = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "image_dfl.dcm",
            "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm",
            "JPGExtended.dcm"]  # fmt: skip


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_file_that_is_cut_short_is_refused(name):
    data = real(name)
    for part in range(1, 23):
        with pytest.raises(UserError):
            decoded(data[: len(data) * part // 23])


@pytest.mark.parametrize("name", SYNTAXES)
@settings(max_examples=40)
@given(draw=st.data())
def test_damaged_files_are_an_image_or_refused_and_nothing_else_happens(name, draw):
    data = bytearray(real(name))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):
        decoded(bytes(data))


def test_files_are_told_by_content_and_read_like_any_image(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(real("MR_small.dcm"))
    grey = np.asarray(read_image(path, channels=1).image)
    np.testing.assert_array_equal(grey, decoded(real("MR_small.dcm"))[..., 0])
    expected = Image.fromarray(grey).resize((13, 13), Image.BILINEAR)
    np.testing.assert_array_equal(load_image(path, 1, 13)[..., 0], np.asarray(expected))
    path.write_bytes(real("MR_truncated.dcm"))
    with pytest.raises(UserError, match=r"scan\.png: damaged or cut short"):
        load_image(path, 1, 13)
