import contextlib
import hashlib
import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from raw_sets import write_image

from fmi_jax.data.preparing.images import decode_image, load_image, read_image, resize_image
from fmi_jax.errors import UserError

# What Pillow says of damaged metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def torchvision_resize():
    """A function of an image and a side in pixels: what the study's transform makes of it."""
    try:
        from torchvision.transforms import v2
    except RuntimeError:  # its binary operators were built for another torch; none is used here
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision.transforms import v2

        _KEEP.append(library)  # the operators go when it goes
    return lambda image, size: np.asarray(v2.functional.resize(image, [size, size], antialias=True))


_KEEP = []


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(data: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(decode_image(data, channels=channels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(311, 503), (97, 41), (256, 256), (1301, 257)])
def test_resized_pixels_are_torchvision_s_to_the_last_bit(shape, channels, torchvision_resize):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    expected = torchvision_resize(image, 256)
    ours = resize_image(decode_image(encoded(image), channels=channels), size=256)
    assert ours.shape == (256, 256, channels)
    np.testing.assert_array_equal(ours.squeeze(-1) if channels == 1 else ours, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colour_mode_is_converted_as_the_reference_does(mode, channels):
    image = Image.fromarray(RGB).convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    expected = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    np.testing.assert_array_equal(decoded(data, channels), np.asarray(expected))


def test_transparency_is_dropped():
    image = Image.fromarray(np.dstack([RGB, np.zeros((5, 7), np.uint8)]))
    np.testing.assert_array_equal(decoded(encoded(image)), RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_high_byte_is_kept(kind):
    values = RNG.integers(0, 2**16, (5, 7), dtype=np.uint16)
    data = encoded(Image.fromarray(values), kind)
    np.testing.assert_array_equal(decoded(data, 1), values >> 8)
    np.testing.assert_array_equal(decoded(data, 3), np.dstack([values >> 8] * 3))


def test_of_16_bit_colours_the_high_byte_is_kept():
    values = RNG.integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    np.testing.assert_array_equal(decoded(_png(7, 5, 16, rows)), values >> 8)


def _image(pixels: np.ndarray, mode: str) -> Image.Image:
    if pixels.ndim == 2:
        return Image.fromarray(pixels)
    return Image.merge(mode, [Image.fromarray(channel) for channel in np.moveaxis(pixels, 2, 0)])


# EXIF orientation: how the stored pixels become upright.
_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
# How each mode is stored without loss, and the type and channels of its pixels.
_STORED = {
    "RGB": (("PNG", "TIFF", "WEBP"), np.uint8, (3,)),
    "RGBA": (("PNG", "TIFF"), np.uint8, (4,)),
    "L": (("PNG", "TIFF"), np.uint8, ()),
    "LA": (("PNG",), np.uint8, (2,)),
    "CMYK": (("TIFF",), np.uint8, (4,)),
    "1": (("PNG",), np.bool_, ()),
    "I;16": (("PNG", "TIFF"), np.uint16, ()),
}


@settings(max_examples=200)
@given(draw=st.data())
def test_any_image_becomes_what_the_study_s_transform_makes_of_it(torchvision_resize, draw):
    mode = draw.draw(st.sampled_from(sorted(_STORED)))
    kinds, dtype, channels = _STORED[mode]
    side = st.integers(1, 40)
    shape = (draw.draw(side), draw.draw(side), *channels)
    rng = np.random.default_rng(draw.draw(st.integers(0, 999)))
    pixels = rng.integers(0, 2 if dtype is np.bool_ else np.iinfo(dtype).max + 1, shape)
    pixels = pixels.astype(dtype)
    orientation, size = draw.draw(st.integers(1, 8)), draw.draw(st.integers(1, 23))
    grey = draw.draw(st.booleans())

    exif = Image.Exif()
    exif[0x0112] = orientation
    kind = draw.draw(st.sampled_from(kinds))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(_image(pixels, mode), kind, exif=exif, **options)
    ours = resize_image(decode_image(data, channels=1 if grey else 3), size=size)

    upright = _UPRIGHT[orientation](pixels)
    upright = (upright >> 8).astype(np.uint8) if dtype is np.uint16 else upright
    image = _image(upright, mode).convert("L" if grey else "RGB")
    expected = torchvision_resize(image, size)
    assert (ours.dtype, ours.shape) == (np.uint8, (size, size, 1 if grey else 3))
    np.testing.assert_array_equal(ours, expected[..., None] if grey else expected)


def _png(width: int, height: int, bits: int = 8, rows: bytes = b"") -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


_FRAMES = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
_PNG, _JPEG = encoded(Image.fromarray(RGB)), encoded(Image.fromarray(RGB), "JPEG")
_LARGE_JPEG = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"id,label\n1,2\n", "not an image .*; expected PNG, JPEG, TIFF, BMP, WEBP, DICOM"),
        (encoded(Image.fromarray(RGB), "GIF"), "not an image .* expected PNG, JPEG"),
        (_PNG[:-30], "cut short"),
        (_LARGE_JPEG[: len(_LARGE_JPEG) // 2], "cut short"),
        (_PNG[:60] + bytes([_PNG[60] ^ 1]) + _PNG[61:], "damaged"),
        (_png(11_600, 11_600), "11600 x 11600 pixels, more than 134 megapixels"),
        (_png(60_000, 60_000), "more than 134 megapixels"),
        (encoded(_FRAMES[0], "GIF", save_all=True, append_images=_FRAMES[1:]), "not an image"),
        (encoded(_FRAMES[0], "WEBP", save_all=True, append_images=_FRAMES[1:]), "2 frames"),
        (encoded(_FRAMES[0], "TIFF", save_all=True, append_images=_FRAMES[1:]), "2 frames"),
        (encoded(_FRAMES[0], "PNG", save_all=True, append_images=_FRAMES[1:]), "2 frames"),
        (encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(RGB[..., 0].astype(np.int32) << 9), "TIFF"), "more than 16 bits"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_used_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        decode_image(data, channels=3)


_GOOD = [_PNG, _JPEG, *(encoded(Image.fromarray(RGB), kind) for kind in ("TIFF", "BMP", "WEBP"))]


@given(st.sampled_from([b"", bytes(128) + b"DICM", *(good[:16] for good in _GOOD)]), st.binary())
def test_no_bytes_whatever_give_anything_but_an_image_or_a_message(start, rest):
    with contextlib.suppress(UserError):
        assert decode_image(start + rest, channels=3).mode == "RGB"


@given(st.data())
def test_damaged_files_are_refused_and_nothing_else_happens(draw):
    original = draw.draw(st.sampled_from(_GOOD))
    cut = original[: draw.draw(st.integers(0, len(original)))]
    at = draw.draw(st.integers(0, max(len(cut) - 1, 0)))
    data = cut[:at] + draw.draw(st.binary(max_size=4)) + cut[at + 1 :]
    with contextlib.suppress(UserError):
        assert decode_image(data, channels=3).mode == "RGB"


def test_load_image_is_the_whole_policy(tmp_path):
    write_image(tmp_path / "a.png", seed=3)
    expected = Image.open(tmp_path / "a.png").convert("L").resize((13, 13), Image.BILINEAR)
    ours = load_image(tmp_path / "a.png", channels=1, size=13)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(expected)[..., None])


def test_load_image_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: image file is missing"):
        load_image(tmp_path / "gone.png", 3, 13)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        load_image(tmp_path / "text.png", 3, 13)


def test_a_raw_image_comes_with_the_hash_of_its_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_PNG)
    image, sha256 = read_image(path, channels=3)
    assert (image.mode, image.size) == ("RGB", (7, 5))
    assert sha256 == hashlib.sha256(_PNG).hexdigest()
    with pytest.raises(UserError, match="item 3 of a file that holds one image"):
        read_image(path, channels=3, item=3)
    with pytest.raises(UserError, match="image file is missing"):
        read_image(tmp_path / "b.png", channels=3)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_image(tmp_path, channels=3)


PATCHES = RNG.integers(0, 256, (11, 5, 7, 3), dtype=np.uint8)


@pytest.fixture
def hdf5(tmp_path):
    def write(images=PATCHES, name="x"):
        path = tmp_path / "split_train_x.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(name, data=images, chunks=True, compression="gzip")
        return path

    return write


def test_images_of_one_hdf5_file_are_told_by_their_number(hdf5):
    path = hdf5()

    def read(item):
        return read_image(path, channels=3, item=item)

    with ThreadPoolExecutor(4) as pool:
        for item, (image, sha256) in enumerate(pool.map(read, range(11))):
            np.testing.assert_array_equal(np.asarray(image), PATCHES[item])
            assert sha256 == hashlib.sha256(PATCHES[item].tobytes()).hexdigest()
    grey = read_image(path, channels=1, item=2).image
    np.testing.assert_array_equal(grey, Image.fromarray(PATCHES[2]).convert("L"))


@pytest.mark.parametrize("images", [PATCHES[..., 0], PATCHES[..., :1]])
def test_grey_hdf5_images(hdf5, images):
    image = read_image(hdf5(images), channels=3, item=4).image
    np.testing.assert_array_equal(image, np.dstack([PATCHES[4, ..., 0]] * 3))


@pytest.mark.parametrize(
    ("options", "item", "message"),
    [
        ({}, None, "an HDF5 file holds many images; expected the number of one"),
        ({}, 11, "no item 11; the HDF5 file holds items 0 to 10"),
        ({}, -1, "no item -1"),
        ({"name": "y"}, 0, "no data set 'x'; it holds y"),
        ({"images": PATCHES[..., :2]}, 0, r"uint8 \[11, 5, 7, 2\]; expected uint8 \[n, h, w\]"),
        ({"images": PATCHES.astype(float)}, 0, "'x' is float64"),
        ({"images": PATCHES[:, :, :0]}, 0, "0 x 5 pixels; expected at least one"),
    ],
)
def test_hdf5_files_of_another_form_are_refused(hdf5, options, item, message):
    if "images" in options and not options["images"].size:
        with h5py.File(path := hdf5(), "w") as file:
            file["x"] = options["images"]
    else:
        path = hdf5(**options)
    with pytest.raises(UserError, match=message):
        read_image(path, channels=3, item=item)


def test_damaged_hdf5_files_are_refused(hdf5, tmp_path):
    data = hdf5().read_bytes()
    for name, damaged in [
        ("text.h5", b"text"),
        ("empty.h5", b""),
        ("cut.h5", data[: len(data) * 2 // 3]),
        ("flipped.h5", data[:-400] + bytes(400)),
    ]:
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match="image file cannot be read"):
            read_image(tmp_path / name, channels=3, item=10)
    with pytest.raises(UserError, match="image file is missing"):
        read_image(tmp_path / "gone.h5", channels=3, item=0)
    (tmp_path / "renamed.png").write_bytes(data)
    with pytest.raises(UserError, match="not an image"):
        read_image(tmp_path / "renamed.png", channels=3)
