"""HTML pages that need nothing but themselves: no file beside them, no network, no script."""

import base64
import datetime
import functools
import io
import json
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from fmi_jax.drawing.wording import between, number, percent

_THUMBNAIL = 176  # pixels; shown at 118 or less, so sharp on dense screens


def render(package: str, template: str, **values: Any) -> bytes:
    """Render a page from a package's template, which may extend those of this one.

    Args:
      package: name of the package that holds the template.
      template: file name.
      values: contents of the page, all of them escaped.
    """
    return _environment(package).get_template(template).render(**values).encode()


def png_uri(png: bytes) -> str:
    """The bytes of a PNG, to be put into a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def thumbnail(image: np.ndarray) -> Image.Image:
    """A small copy of an image, uint8 `[h, w, 1]` or `[h, w, 3]`."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return picture


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a JPEG, to be put into a page."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@functools.cache
def _environment(package: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, ""), jinja2.PackageLoader("fmi_jax", "drawing")]
        ),
        autoescape=True,  # names of classes, images and data sets come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": lambda bounds: between(bounds) if bounds else "",
        "duration": duration,
        "large": _large,
        "flat": _flat,
        "when": lambda iso: datetime.datetime.fromisoformat(iso).strftime("%-d %B %Y, %H:%M"),
        "percent": percent,
    }
    return environment


def duration(seconds: float) -> str:
    """A time as a reader wants it: "12.3 s", "7 min", "3 h 5 min"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _large(count: int) -> str:
    """A parameter count as a paper writes it."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"


def _flat(values: dict[str, Any], where: str = "") -> dict[str, str]:
    """Nested JSON values as text by dotted name."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{where}{name}.")
        else:
            items = value if isinstance(value, list) else [value]
            flat[where + name] = ", ".join(map(_text, items))
    return flat


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if type(value) is int:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
