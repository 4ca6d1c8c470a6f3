"""Limit on the size of an image, checked in its header, so that a bomb is never decoded."""

from fmi_jax.errors import UserError

MAX_PIXELS = 2**27
"""Most pixels of an image, 134 megapixels: a mammogram has 30, a decompression bomb thousands."""


def check_size(width: int, height: int) -> None:
    """Refuse an image without pixels or with more than `MAX_PIXELS`.

    Raises:
      UserError: names the size and the limit.
    """
    if width < 1 or height < 1:
        raise UserError(f"{width} x {height} pixels; expected at least one")
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} megapixels")
