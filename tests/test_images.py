"""Images: every mode ends as upright RGB, everything bad ends as an ImageError that names the image."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from eval_harness import images
from eval_harness.images import FORMATS, ImageError, decode, encode, read_file, size_of
from eval_harness.sources import folder_reader

RED, GREY = (200, 30, 40), (128, 128, 128)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(data: bytes, at=(0, 0)) -> tuple[int, int, int]:
    image = decode(data)
    assert image.mode == "RGB"
    return image.getpixel(at)


def close(one, other, within=4) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= within


def test_palette_grey_and_black_and_white():
    assert close(pixel(encoded(Image.new("RGB", (8, 8), RED).quantize(4))), RED)
    assert pixel(encoded(Image.new("L", (8, 8), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (8, 8), 1))) == (255, 255, 255)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    cmyk = Image.new("RGB", (16, 16), RED).convert("CMYK")
    assert close(pixel(encoded(cmyk, format)), RED, within=8)


def test_sixteen_bit_grey_is_scaled_not_cut_off():
    for value in (0, 300, 32896, 65535):
        grey = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
        assert close(pixel(encoded(grey)), (value // 257,) * 3, within=1)
        assert close(pixel(encoded(grey, "TIFF")), (value // 257,) * 3, within=1)


def test_sixteen_bit_grey_has_white_at_65535():
    # 65280 / 257 = 254.008: white is 65535 = 255 * 257, not 255 * 256 = 65280
    for value, expected in ((65280, 254), (65535, 255), (257 * 100, 100)):
        assert pixel(encoded(Image.fromarray(np.full((4, 4), value, dtype=np.uint16)))) == (expected,) * 3


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert pixel(encoded(clear)) == (255, 255, 255)
    assert close(pixel(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))), (127, 127, 127), within=1)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(encoded(palette, transparency=0)) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The header's size and the decoded picture agree, and the red corner is where the viewer sees it."""
    stored = Image.new("RGB", (40, 20), GREY)
    stored.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    shown = decode(data)
    assert shown.size == size_of(data) == ((40, 20) if orientation < 5 else (20, 40))
    right, bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    corner = (shown.width - 3 if right else 2, shown.height - 3 if bottom else 2)
    assert close(shown.getpixel(corner), RED, within=20)


def test_one_pixel_and_the_first_of_an_animation():
    assert pixel(encoded(Image.new("RGB", (1, 1), RED))) == RED
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREY)]
    assert close(pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])), RED)


def test_very_large_images_are_refused_before_they_are_decoded(monkeypatch):
    huge = encoded(Image.new("1", (15_000, 9_000)))  # 135 million pixels in a few kilobytes
    with pytest.raises(ImageError, match=r"map.png: 15000 x 9000 pixels; at most 100,000,000"):
        decode(huge, "map.png")
    with pytest.raises(ImageError, match="bomb.png: far more"):
        decode(encoded(Image.new("1", (30_000, 20_000))), "bomb.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    assert decode(encoded(Image.new("L", (9, 11)))).size == (9, 11)
    with pytest.raises(ImageError, match="10 x 10"):
        decode(encoded(Image.new("L", (10, 10))))


def test_strips_are_refused():
    with pytest.raises(ImageError, match="200 to 1"):
        decode(encoded(Image.new("L", (2_010, 10))), "strip")
    assert decode(encoded(Image.new("L", (2_000, 10)))).size == (2_000, 10)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_damaged_files_are_named(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    assert decode(data).size == (64, 64)
    for cut in (1, 12, len(data) // 2):
        with pytest.raises(ImageError, match="photo 7"):
            decode(data[:cut], "photo 7")


def test_what_is_no_image_is_named():
    for data, problem in ((b"", "empty"), (b"<html>404</html>", "not a readable image"), (b"\xff\xd8\xff", "readable")):
        with pytest.raises(ImageError, match=rf"x\.jpg.*{problem}"):
            decode(data, "x.jpg")
        with pytest.raises(ImageError, match="x.jpg"):
            size_of(data, "x.jpg")


def test_encode_keeps_pixels_and_is_stable():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    data = encode(noise)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(noise))
    assert data == encode(noise.copy())


def test_folder_reader_stays_in_its_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"linked")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    read = folder_reader(folder)
    assert read(0, "./images/a.png") == b"linked"  # a data set that is linked into the folder is fine
    for name in ("../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png"):
        with pytest.raises(ImageError, match="leads out"):
            read(0, name)
    with pytest.raises(ImageError, match=r"b\.png.*No such file.*folder images"):
        read(0, "images/b.png")
    with pytest.raises(ImageError, match="null"):
        read(0, "a\0.png")
    with pytest.raises(ImageError, match="directory"):
        read(0, "images")


# --- Nothing but pictures, and no more of them than is affordable ----------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("content", ["PostScript", "PostScript behind a DOS header", "PostScript in a folder"])
def test_postscript_by_another_name_starts_no_program(content, tmp_path, monkeypatch):
    """A program called gs, first on PATH, would leave a file."""
    (tmp_path / "bin").mkdir()
    canary = tmp_path / "canary"
    for name in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {canary}\nexit 0\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    data = POSTSCRIPT
    if content == "PostScript behind a DOS header":
        data = struct.pack("<IIIIII", 0xC6D3D0C5, 30, len(data), 0, 0, 0) + b"\0" * 6 + data
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(data)
    found = folder_reader(folder)(0, "a.png") if content == "PostScript in a folder" else data
    for read in (decode, size_of):
        with pytest.raises(ImageError, match="a.png: not a readable image"):
            read(found, "a.png")
    assert not canary.exists()
    with Image.open(io.BytesIO(data)) as unguarded, contextlib.suppress(OSError):  # the trap is one
        unguarded.load()
    assert canary.exists()


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "AVIF", "EPS", "PDF", "DDS"])
def test_other_formats_are_refused(format):
    assert format not in FORMATS
    with pytest.raises(ImageError, match="a.png: not a readable image"):
        decode(encoded(Image.new("RGB", (32, 32), RED), format), "a.png")


def test_only_one_function_opens_pictures():
    root, doors = Path(images.__file__).parents[1], ("Image.open", "PIL.Image.open", "imread", "plt.imread")
    calls = [
        path.relative_to(root).as_posix()
        for part in ("eval_harness", "gpg_repro", "bench", "scripts")
        for path in sorted((root / part).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in doors
    ]
    assert calls == ["eval_harness/images.py"]


def test_only_regular_files_of_some_size_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1 << 20)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
        (folder / "good.png").write_bytes(encoded(Image.new("L", (4, 4))))
        (folder / "also.png").symlink_to("good.png")
        (folder / "large.png").write_bytes(b"x" * ((1 << 20) + 1))
        read = folder_reader(folder)
        started = time.monotonic()
        problems = {"pipe.png": "not a regular", "link.png": "not a regular", "socket.png": "No such device"}
        for name, problem in (problems | {"large.png": "1 MiB; at most 1 MiB"}).items():
            with pytest.raises(ImageError, match=f"{name}.*{problem}"):
                read(0, name)
        assert time.monotonic() - started < 5
        assert decode(read(0, "good.png")).size == decode(read(0, "also.png")).size == (4, 4)
    for device in ("/dev/zero", "/dev/tty"):
        with pytest.raises(ImageError, match="not a regular|No such device"):
            read_file(Path(device), "a.png")
    for look in (decode, size_of):  # bytes out of a data set, which are no file
        with pytest.raises(ImageError, match="a.png: 1 MiB; at most 1 MiB are read"):
            look(b"x" * ((1 << 20) + 1), "a.png")


PEAKS = {
    # kind: picture of 100 x 100, bytes of a pixel at the peak
    "grey": (lambda: encoded(Image.new("L", (100, 100))), 1 + 4),  # itself, and RGB in four
    "colours": (lambda: encoded(Image.new("RGB", (100, 100))), 4 + 4),  # itself and the upright copy
    "transparency": (lambda: encoded(Image.new("RGBA", (100, 100))), 4 * 4),  # itself, ground, laid over, RGB
    "grey with transparency": (lambda: encoded(Image.new("LA", (100, 100))), 5 * 4),  # and RGBA of it
    "a clear colour": (lambda: encoded(Image.new("P", (100, 100)), transparency=0), 1 + 4 * 4),
    "16 bits": (lambda: encoded(Image.fromarray(np.zeros((100, 100), np.uint16))), 8),  # measured
    "floats": (lambda: encoded(Image.new("F", (100, 100)), "TIFF"), 9),
    "a progressive JPEG": (lambda: encoded(Image.new("RGB", (100, 100)), "JPEG", progressive=True), 4 + 3 * 2),
    "a progressive one of four inks": (
        lambda: encoded(Image.new("CMYK", (100, 100)), "JPEG", progressive=True), 4 + 4 * 2,
    ),
    "WebP": (lambda: encoded(Image.new("RGB", (100, 100)), "WEBP"), 4 + 3 * 4),  # two canvases and the bytes
}  # fmt: skip


@pytest.mark.parametrize("kind", PEAKS)
def test_memory_is_counted_by_mode(kind, monkeypatch):
    make, peak = PEAKS[kind]
    data = make()
    monkeypatch.setattr(images, "MAX_MEMORY_BYTES", 100 * 100 * peak)
    assert decode(data).size == (100, 100)
    monkeypatch.setattr(images, "MAX_MEMORY_BYTES", 100 * 100 * peak - 1)
    with pytest.raises(ImageError, match=r"a.png: 100 x 100 pixels of kind .* take 0 MiB; at most 0 MiB are given"):
        decode(data, "a.png")


def test_the_picture_that_took_two_gigabytes_is_refused_and_one_of_its_size_in_grey_is_not():
    """10,000 x 10,000 with transparency in 390 kB: 16 bytes a pixel are 1,600 MB, and 800 MB (762 MiB) are given."""
    with pytest.raises(ImageError, match="10000 x 10000 pixels of kind RGBA take 1525 MiB; at most 762 MiB"):
        decode(_header(10_000, 10_000, colour_type=6))
    assert images.open_image(_header(10_000, 10_000, colour_type=0)).size == (10_000, 10_000)
    assert images.open_image(_header(10_000, 10_000, colour_type=2)).size == (10_000, 10_000)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _header(width: int, height: int, colour_type: int) -> bytes:
    """A PNG that ends where its pixels begin."""
    about = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", about) + _chunk(b"IDAT", b"x" * 9)


def _scans(side: int, times: int) -> bytes:
    """A progressive JPEG whose last scan, a few bytes, comes so many times: each is a walk over all of the picture."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    assert data[end:] == b"\xff\xd9"
    return data[:end] + data[last:end] * times + data[end:]


def _markers(times: int) -> bytes:
    """A JPEG with so many empty comments before its picture."""
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xfe\x00\x02" * times + data[2:]


def _chunks(times: int) -> bytes:
    """A PNG with so many empty chunks that mean nothing."""
    data = encoded(Image.new("L", (8, 8)))
    return data[:33] + _chunk(b"teSt", b"") * times + data[33:]


ENDLESS = {
    "scans of a JPEG": lambda times: _scans(1000, 20 * times),
    "comments of a JPEG": lambda times: _markers(3000 * times),
    "chunks of a PNG": lambda times: _chunks(1000 * times),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_decoding_ends_at_its_deadline(kind, monkeypatch):
    few, many = ENDLESS[kind](1), ENDLESS[kind](200)
    assert decode(few).size in ((1000, 1000), (8, 8))
    assert len(many) < 4 << 20  # and 64 MiB would be read
    monkeypatch.setattr(images, "DECODE_SECONDS", 0.1)
    started = time.thread_time()
    with pytest.raises(ImageError, match=r"^a.png: decoding takes more than 0.1 s$"):
        decode(many, "a.png")
    assert time.thread_time() - started < 1.5
