import contextlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_sets import write_image

from fmi_jax.data.images import decode_image, load_image, resize_image
from fmi_jax.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def torchvision_resize():
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
    return v2.Resize((256, 256), antialias=True)


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
    expected = np.asarray(torchvision_resize(image))
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


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = encoded(Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(decoded(data), np.rot90(RGB, -1))


def _png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (header, data, b"IEND")
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
        (b"id,label\n1,2\n", "not an image"),
        (encoded(Image.fromarray(RGB), "GIF"), "not an image .* expected PNG, JPEG"),
        (_PNG[:-30], "cut short"),
        (_LARGE_JPEG[: len(_LARGE_JPEG) // 2], "cut short"),
        (_PNG[:60] + bytes([_PNG[60] ^ 1]) + _PNG[61:], "damaged"),
        (_png_header(11_600, 11_600), "11600 x 11600 pixels, more than 134 megapixels"),
        (_png_header(60_000, 60_000), "more than 134 megapixels"),
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


@settings(deadline=None)
@given(st.data())
def test_damaged_files_are_refused_and_nothing_else_happens(draw):
    original = draw.draw(st.sampled_from([_PNG, _JPEG]))
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
    with pytest.raises(UserError, match=r"gone\.png: No such file"):
        load_image(tmp_path / "gone.png", 3, 13)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        load_image(tmp_path / "text.png", 3, 13)
