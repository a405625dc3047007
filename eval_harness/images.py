"""Images as models see them: decoded once, checked, in RGB."""

from __future__ import annotations

import io
import warnings

from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 100_000_000
"""Larger images are refused: no benchmark holds one, and decoding it would take gigabytes."""
MAX_ASPECT_RATIO = 200
"""Longer strips are refused by Qwen2-VL's processor."""
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class ImageError(ValueError):
    """This image cannot be shown to a model. The message names it and says why."""


def decode(data: bytes, name: str = "image") -> Image.Image:
    """An encoded image (JPEG, PNG, WebP, ...) as 8-bit RGB.

    Turned upright by its EXIF orientation. Palettes and CMYK are converted, transparency is laid over white, 16-bit
    grey is scaled to 8 bits (Pillow alone would cut it off at white).

    Args:
        data: the file's bytes.
        name: what to call it in messages.

    Raises:
        ImageError: no image, cut off, over ``MAX_PIXELS`` pixels or longer than ``MAX_ASPECT_RATIO`` to one.
    """
    image = _open(data, name)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded. Scale it down.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{name}: {width} x {height} pixels; no more than {MAX_ASPECT_RATIO} to 1 can be shown")
    try:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of hostile bytes raise whatever they stumble over
        raise ImageError(f"{name}: damaged or cut off ({_first_line(error)})") from None


def size_of(data: bytes, name: str = "image") -> tuple[int, int]:
    """Width and height of the upright image in pixels, read from its header.

    Raises:
        ImageError: no image. A file whose header is whole but whose pixels are not passes.
    """
    image = _open(data, name)
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception as error:
        raise ImageError(f"{name}: damaged ({_first_line(error)})") from None
    return image.size[::-1] if turned else image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB (see :func:`decode`)."""
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT:
        return image.point(lambda value: value / 257, "F").convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def encode(image: Image.Image) -> bytes:
    """A Pillow image as PNG bytes, without loss; the same bytes for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode() is stricter
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: far more than the {MAX_PIXELS:,} pixels that are decoded. Scale it down.") from None
    except Exception as error:
        raise ImageError(f"{name}: not a readable image ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
