"""Images: every mode ends as upright RGB, everything bad ends as an ImageError that names the image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eval_harness import images
from eval_harness.images import ImageError, decode, encode, size_of
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
