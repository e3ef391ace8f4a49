"""Single pictures of every kind: pixels against Pillow and arithmetic, and what is refused."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from daps_robot.data.decode import MAX_PIXELS, PictureDecoder
from daps_robot.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def encoded(image, form="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG by hand, of kinds that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("upright", [False, True])
def test_the_middle_of_a_picture_of_the_right_height_keeps_its_pixels(form, options, upright):
    pixels = NOISE.transpose(1, 0, 2) if upright else NOISE
    middle = pixels[10:50] if upright else pixels[:, 10:50]
    assert np.array_equal(PictureDecoder(40)(encoded(np.ascontiguousarray(pixels), form, **options)), middle)


def test_a_jpeg_of_the_right_size_is_as_pillow_decodes_it():
    data = encoded(NOISE[:, :40], "JPEG", quality=75)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(PictureDecoder(40)(data), np.asarray(image.convert("RGB")))


def test_resizing_is_antialiased_and_keeps_the_middle():
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(PictureDecoder(16)(encoded(stripes)).astype(int) - 100)[:, 2:-2].max() <= 2  # without it: 0 or 200
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (64, 128, 3))
    columns = PictureDecoder(16)(encoded(np.ascontiguousarray(ramp)))[8, 2:-2, 0]
    assert np.abs(columns - (32 + 4 * np.arange(2, 14) + 1.5)).max() <= 1  # columns 32 to 95, four a pixel


def test_a_large_jpeg_is_about_what_it_would_be_without_reduced_decoding():
    smooth = Image.fromarray(NOISE).resize((1024, 768), Image.Resampling.BICUBIC)
    jpeg = PictureDecoder(32)(encoded(smooth, "JPEG", quality=95)).astype(float)
    assert np.abs(jpeg - PictureDecoder(32)(encoded(smooth))).mean() < 2


def test_greyscale_becomes_three_equal_channels():
    for image in (Image.fromarray(NOISE[:, :40, 0]), Image.fromarray(NOISE[:, :40, 0] > 127)):
        pixels = PictureDecoder(40)(encoded(image))
        assert np.array_equal(pixels, np.repeat(np.asarray(image.convert("L"))[..., None], 3, 2))


def test_palettes_and_cmyk_are_converted():
    palette = Image.fromarray(NOISE[:, :40]).quantize(16)
    assert np.array_equal(PictureDecoder(40)(encoded(palette)), np.asarray(palette.convert("RGB")))
    plain = np.full((40, 40, 3), (200, 30, 90), np.uint8)
    assert (
        np.abs(PictureDecoder(40)(encoded(Image.fromarray(plain).convert("CMYK"), "JPEG", quality=98)) - plain.astype(int)).max()
        < 6
    )


def test_exif_orientation_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(PictureDecoder(40)(encoded(NOISE, exif=exif)), PictureDecoder(40)(encoded(NOISE)))


def test_transparency():
    layer = np.concatenate([NOISE[:, :40], np.full((40, 40, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(PictureDecoder(40)(encoded(layer)), NOISE[:, :40])  # hides nothing
    layer[:20, :, 3] = 0
    with pytest.raises(DataError, match="--alpha white or black"):
        PictureDecoder(40)(encoded(layer))
    for alpha, level in (("white", 255), ("black", 0)):
        pixels = PictureDecoder(40, alpha)(encoded(layer))
        assert (pixels[:20] == level).all()
        assert np.array_equal(pixels[20:], NOISE[20:, :40])
    palette = Image.fromarray(NOISE[:, :40]).quantize(16)
    with pytest.raises(DataError, match="transparent"):
        PictureDecoder(40)(encoded(palette, transparency=3))
    assert (PictureDecoder(40, "black")(encoded(palette, transparency=3))[np.asarray(palette) == 3] == 0).all()


def test_small_pictures():
    with pytest.raises(DataError, match=r"60×40 pixels, smaller than 41; .*--enlarge"):
        PictureDecoder(41)(encoded(NOISE))
    assert PictureDecoder(41, enlarge=True)(encoded(NOISE)).shape == (41, 41, 3)
    line = np.full((1, 60_000, 3), 7, np.uint8)
    assert (PictureDecoder(256, enlarge=True)(encoded(line)) == 7).all()  # not by way of 256×15 million pixels


def test_what_is_refused():
    decoder = PictureDecoder(4)
    deep_colour = png(4, 4, 16, 2, (b"\0" + bytes(4 * 6)) * 4)
    for data in (deep_colour, encoded(Image.fromarray(np.zeros((8, 8), np.uint16)))):
        with pytest.raises(DataError, match="more than 8 bits"):
            decoder(data)
    with pytest.raises(DataError, match="animated"):
        decoder(encoded(Image.fromarray(NOISE), "WEBP", save_all=True, append_images=[Image.fromarray(255 - NOISE)]))
    for data in (b"", b"hello", encoded(NOISE, "TIFF"), encoded(NOISE, "GIF")):
        with pytest.raises(DataError, match="not a JPEG, PNG, WebP or BMP"):
            decoder(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_claims_to_be_huge_takes_no_memory():
    for side in (2**14, 2**31 - 1):
        with pytest.raises(DataError, match=f"more than {MAX_PIXELS:,}|cannot be decoded"):
            PictureDecoder(4)(png(side, side, 8, 2, b""))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_cut_off_and_overwritten_pictures_raise_nothing_but_data_errors(form):
    data = encoded(NOISE, form)
    for end in range(len(data) // 2, len(data) * 9 // 10, len(data) // 10):
        with pytest.raises(DataError, match=r"cannot be decoded|not a JPEG"):
            PictureDecoder(40)(data[:end])
    for _ in range(60):
        broken = bytearray(data)
        for place in RNG.integers(0, len(data) if RNG.random() < 0.5 else 60, 4):
            broken[place] = RNG.integers(256)
        with contextlib.suppress(DataError):
            assert PictureDecoder(40, "white", True)(bytes(broken)).shape == (40, 40, 3)


def test_absurd_sizes():
    for size in (0, 5000):
        with pytest.raises(ConfigError, match=f"size of {size}"):
            PictureDecoder(size)
