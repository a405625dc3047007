"""Images as models see them: decoded once, checked, in RGB."""

from __future__ import annotations

import io
import os
import stat
import time
import warnings
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read. Pillow alone would try forty more, and start an external program for PostScript under any name."""
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
"""Larger images are refused: no benchmark holds one, and decoding it would take gigabytes."""
MAX_MEMORY_BYTES = 8 * MAX_PIXELS
"""What decoding may take at its peak, by mode: less than ``MAX_PIXELS`` where transparency is laid over white."""
MAX_ASPECT_RATIO = 200
"""Longer strips are refused by Qwen2-VL's processor."""
DECODE_SECONDS = 10.0
"""Of computing. Looked at whenever the decoder asks for more bytes, so no process is needed to hold it: a picture of
``MAX_PIXELS`` takes some 3 s, and what can take for ever (scans of a JPEG, markers) asks in small pieces."""
_PIECE_BYTES = 512
"""Of a JPEG in several scans: each is a walk over the whole picture, and may have 14 bytes."""
_SCAN = b"\xff\xda"
"""The marker of a scan; there is one before the pixels of any JPEG."""
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_CLEAR = ("RGBA", "LA", "PA")
_PEAK_BYTES = {"1": 5, "L": 5, "P": 5, "F": 9}
_PEAK_BYTES |= dict.fromkeys(("RGB", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B"), 8)
"""Of a pixel while it is decoded and converted, by mode; Pillow keeps RGB in four."""
_CLEAR_PEAK_BYTES = {"RGBA": 16, "P": 17}


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
        ImageError: no image in one of ``FORMATS``, cut off, over a limit of this module, longer than
            ``MAX_ASPECT_RATIO`` to one.
    """
    image = open_image(data, name)
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{name}: {width} x {height} pixels; no more than {MAX_ASPECT_RATIO} to 1 can be shown")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)  # a copy; the first is let go
        return to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # decoders of hostile bytes raise whatever they stumble over
        raise ImageError(f"{name}: damaged or cut off ({_first_line(error)})") from None


def size_of(data: bytes, name: str = "image") -> tuple[int, int]:
    """Width and height of the upright image in pixels, read from its header.

    Raises:
        ImageError: no image. A file whose header is whole but whose pixels are not passes.
    """
    image = _opened(data, name)
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
    if image.mode in _CLEAR or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def encode(image: Image.Image) -> bytes:
    """A Pillow image as PNG bytes, without loss; the same bytes for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_file(path: Path, name: str) -> bytes:
    """The bytes of a regular file, which a link may lead to.

    Raises:
        ImageError: there is none, it is a pipe, a device or a folder, or it has more than ``MAX_FILE_BYTES``.
    """
    try:
        with open(path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ImageError(f"{name!a}: not a regular file")
            if about.st_size > MAX_FILE_BYTES:
                raise ImageError(f"{name!a}: {about.st_size >> 20} MiB; at most {MAX_FILE_BYTES >> 20} MiB are read")
            return file.read(MAX_FILE_BYTES + 1)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = getattr(error, "strerror", None) or error
        raise ImageError(f"{name!a}: {problem} (in the folder {path.parent.name})") from None


def open_image(data: bytes, name: str = "image") -> Image.Image:
    """An encoded image whose header is read and whose pixels are not yet; the only door to Pillow's decoders.

    Raises:
        ImageError: no image in one of ``FORMATS``, or one over ``MAX_FILE_BYTES``, ``MAX_PIXELS`` or
            ``MAX_MEMORY_BYTES``.
    """
    image = _opened(data, name)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded. Scale it down.")
    in_scans = image.format in ("JPEG", "MPO") and data.count(_SCAN) > 1  # progressive ones, and others
    peak = _peak_bytes(image, in_scans)
    if width * height * peak > MAX_MEMORY_BYTES:
        raise ImageError(
            f"{name}: {width} x {height} pixels of kind {image.mode} take {width * height * peak >> 20} MiB; at most "
            f"{MAX_MEMORY_BYTES >> 20} MiB are given. Scale it down."
        )
    if in_scans:
        image.decodermaxblock = _PIECE_BYTES
    return image


class _Timed(io.BytesIO):
    """Bytes that are handed out for so many seconds of this thread's computing."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self._name, self._end = name, time.thread_time() + DECODE_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._end:
            raise ImageError(f"{self._name}: decoding takes more than {DECODE_SECONDS:g} s")
        return super().read(size)


def _opened(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {len(data) >> 20} MiB; at most {MAX_FILE_BYTES >> 20} MiB are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits here are stricter
            return Image.open(_Timed(data, name), formats=FORMATS)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: far more than the {MAX_PIXELS:,} pixels that are decoded. Scale it down.") from None
    except Exception as error:
        raise ImageError(f"{name}: not a readable image ({_first_line(error)})") from None


def _peak_bytes(image: Image.Image, in_scans: bool) -> int:
    """Most bytes a pixel takes on its way to RGB."""
    clear = image.mode in _CLEAR or "transparency" in image.info
    peak = _CLEAR_PEAK_BYTES.get(image.mode, 20) if clear else _PEAK_BYTES.get(image.mode, 13)
    decoder = 2 * len(image.getbands()) if in_scans else 12 if image.format == "WEBP" else 0
    return max(peak, 4 + decoder)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
