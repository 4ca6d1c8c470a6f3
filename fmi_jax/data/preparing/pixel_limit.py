"""How large an image may be: known from its header, so that a bomb is refused undecoded."""

from fmi_jax.errors import UserError

MAX_PIXELS = 2**27
"""Largest image, 134 megapixels: a mammogram has 30, a decompression bomb thousands."""


def check_size(width: int, height: int) -> None:
    """Refuse an image without pixels or with more than `MAX_PIXELS`.

    Raises:
      UserError: says the size and what is allowed.
    """
    if width < 1 or height < 1:
        raise UserError(f"{width} x {height} pixels; expected at least one")
    if width * height > MAX_PIXELS:
        raise UserError(f"{width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} megapixels")
