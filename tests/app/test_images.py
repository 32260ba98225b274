import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from app import images
from app.errors import BadImageError, TooLargeError, UnsupportedImageTypeError
from tests.fuzz.images import corpus, decode, mutants, run, run_length_encoded

LIMIT = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def encoded(picture, name, **options):
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def gradient(width=24, height=16):
    """A picture whose every pixel differs, so that no turn or mirroring goes unseen."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack((x * 10, y * 15, (x + y) * 5), -1).astype(np.uint8)


def png(width, height, depth, colour, rows, *chunks):
    """A PNG of a kind that Pillow does not write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *(chunk(*other) for other in chunks),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        )
    )


# ------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("name", ["PNG", "BMP"])
def test_lossless_formats_give_their_pixels(name):
    pixels = gradient()
    data = encoded(Image.fromarray(pixels), name)
    assert images.sniff(data) == name
    assert images.size(data, LIMIT) == (24, 16)
    decoded = images.decode(data, LIMIT)
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable


def test_webp_lossless():
    data = encoded(Image.fromarray(gradient()), "WEBP", lossless=True)
    np.testing.assert_array_equal(images.decode(data, LIMIT), gradient())


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(name):
    data = encoded(Image.fromarray(gradient()), name, quality=95)
    assert images.sniff(data) == name
    difference = images.decode(data, LIMIT).astype(int) - gradient()
    assert np.abs(difference).mean() < 6


def test_jpeg_decoders_agree_on_a_photo(photo):
    reference = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(photo, LIMIT), reference)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 1}])
def test_kinds_of_jpeg(photo, options):
    data = encoded(Image.open(io.BytesIO(photo)), "JPEG", **options)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data, LIMIT), reference)


def test_photos_with_a_second_picture_in_them():
    # What telephones write: a JPEG with another one behind it.
    first, second = Image.fromarray(gradient()), Image.new("RGB", (4, 4), "red")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data, LIMIT), reference)


@pytest.mark.parametrize("name", ["GIF", "WEBP"])
def test_animations_give_their_first_frame(name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=10)
    decoded = images.decode(data, LIMIT)
    assert decoded.shape == (6, 8, 3)
    assert np.abs(decoded.astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("name", ["PNG", "JPEG", "BMP"])
def test_thin_pictures(name, size):
    data = encoded(Image.new("RGB", size, (200, 100, 50)), name)
    decoded = images.decode(data, LIMIT)
    assert decoded.shape == (size[1], size[0], 3)
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() < 4


# ----------------------------------------------------------------------------------------- modes


def test_grey():
    for name in ("PNG", "JPEG"):
        decoded = images.decode(encoded(Image.new("L", (8, 8), 77), name), LIMIT)
        np.testing.assert_array_equal(decoded, np.full((8, 8, 3), 77))


def test_black_and_white():
    picture = Image.new("1", (9, 2), 1)
    picture.putpixel((3, 1), 0)
    decoded = images.decode(encoded(picture, "PNG"), LIMIT)
    assert decoded.sum(-1).tolist() == [[765] * 9, [765] * 3 + [0] + [765] * 5]


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
def test_alpha_lies_on_white(name):
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(200, 0, 0, 255), (200, 0, 0, 128), (200, 0, 0, 0)])
    options = {"lossless": True, "exact": True} if name == "WEBP" else {}
    decoded = images.decode(encoded(picture, name, **options), LIMIT)
    assert decoded[0].tolist() == [[200, 0, 0], [227, 127, 127], [255, 255, 255]]


def test_grey_with_alpha():
    picture = Image.new("LA", (2, 1))
    picture.putdata([(10, 255), (10, 0)])
    assert images.decode(encoded(picture, "PNG"), LIMIT)[0, :, 0].tolist() == [10, 255]


def test_palette():
    picture = Image.fromarray(gradient()).quantize(16)
    reference = np.asarray(picture.convert("RGB"))
    for name in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(images.decode(encoded(picture, name), LIMIT), reference)


@pytest.mark.parametrize("name", ["PNG", "GIF"])
@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_transparency(name, transparency):
    if name == "GIF" and isinstance(transparency, bytes):
        transparency = 1
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    decoded = images.decode(encoded(picture, name, transparency=transparency), LIMIT)
    assert decoded[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_a_transparent_colour():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (9, 9, 9))
    data = encoded(picture, "PNG", transparency=(9, 9, 9))
    assert images.decode(data, LIMIT)[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_16_bits_are_scaled_not_clipped():
    values = np.array([0, 255, 256, 0x7F80, 0xFFFF])
    grey = png(5, 1, 16, 0, [values.astype(">u2").tobytes()])
    assert images.decode(grey, LIMIT)[0, :, 0].tolist() == [0, 0, 1, 0x7F, 255]
    colour = png(5, 1, 16, 2, [values.repeat(3).astype(">u2").tobytes()])
    np.testing.assert_array_equal(images.decode(colour, LIMIT), images.decode(grey, LIMIT))
    opaque = np.stack((values, np.full(5, 0xFFFF)), -1)
    with_alpha = png(5, 1, 16, 4, [opaque.astype(">u2").tobytes()])
    np.testing.assert_array_equal(images.decode(with_alpha, LIMIT), images.decode(grey, LIMIT))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_of_grey(depth):
    data = png(1, 1, depth, 0, [bytes([0xFF])])
    assert images.decode(data, LIMIT).tolist() == [[[255, 255, 255]]]


def test_cmyk_is_not_inverted():
    # Adobe stores CMYK inverted: who overlooks that sees a negative.
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    decoded = images.decode(encoded(picture, "JPEG", quality=95), LIMIT)
    assert np.abs(decoded.astype(int) - (255, 0, 0)).max() < 8


def test_a_colour_profile_does_no_harm():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(Image.fromarray(gradient()), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(images.decode(data, LIMIT), gradient())


# ----------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[name]
    data = encoded(Image.fromarray(gradient()), name, exif=exif, **options)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = images.decode(data, LIMIT)
    assert decoded.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    np.testing.assert_array_equal(decoded, np.asarray(reference))
    assert decoded.flags.c_contiguous
    assert images.size(data, LIMIT) == (24, 16)


# Pillow warns, which is for the operator's log; with warnings as errors it would refuse.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"x"])
def test_rubbish_in_the_metadata_leaves_the_picture_as_it_is(exif):
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=exif)
    assert images.decode(data, LIMIT).shape == (16, 24, 3)


def test_an_orientation_that_does_not_exist():
    exif = Image.Exif()
    exif[0x0112] = 9
    data = encoded(Image.fromarray(gradient()), "PNG", exif=exif)
    np.testing.assert_array_equal(images.decode(data, LIMIT), gradient())


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "data", [b"hello", b"%PDF-1.7", b"<svg/>", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypheic", b"\xff"]
)
def test_other_content_is_refused_with_what_is_accepted(data):
    for read in (images.sniff, lambda data: images.decode(data, LIMIT)):
        with pytest.raises(UnsupportedImageTypeError, match="JPEG, PNG, WebP, BMP and GIF"):
            read(data)


def test_nothing_at_all():
    with pytest.raises(BadImageError, match="0 bytes"):
        images.decode(b"", LIMIT)


@pytest.mark.parametrize("name", FORMATS)
def test_what_ends_early_is_refused(name):
    # Noise, so that the pixels fill the file: a picture must not come back half grey.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), name)
    for kept in (len(data) * 9 // 10, len(data) // 2, 40, 13):
        with pytest.raises(BadImageError, match="ends early"):
            images.decode(data[:kept], LIMIT)


# Pillow warns of rubbish in the metadata, which is for the operator's log.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_gives_a_picture_or_a_clear_refusal():
    """A short run of `python -m tests.fuzz.images`."""
    outcomes = run(seed=0, count=1500)
    assert outcomes.keys() == {
        *("decoded", "BadImageError", "TooLargeError", "UnsupportedImageTypeError")
    }
    assert min(outcomes.values()) > 10


def test_mutants_are_the_same_each_time_and_whole_pictures_decode():
    assert list(mutants(3, 50)) == list(mutants(3, 50))
    assert {decode(data) for _, data in corpus()} == {"decoded"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_may_be_something_else_as_well(name):
    page = b"<html><script>alert(1)</script></html>" + b"PK\x03\x04" + bytes(100)
    whole = encoded(Image.fromarray(gradient()), name)
    np.testing.assert_array_equal(images.decode(whole + page, LIMIT), images.decode(whole, LIMIT))
    with pytest.raises(UnsupportedImageTypeError):
        images.decode(page + whole, LIMIT)


def test_run_length_encoded_bmps():
    decoded = images.decode(run_length_encoded(), LIMIT)
    assert decoded[..., 0].tolist() == [[3] * 9, [1] * 5 + [2] * 4]
    for kept in (20, 60, 1082):
        with pytest.raises(BadImageError):
            images.decode(run_length_encoded()[:kept], LIMIT)


def test_rows_that_end_early_are_not_filled_in_python(monkeypatch):
    # Pillow would take seconds for this one.
    data = run_length_encoded(1000, 1000, b"\x01\x05\0\0" * 1000 + b"\0\x01")
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpRleDecoder.decode", None)
    decoded = images.decode(data, LIMIT)
    assert (decoded[:, 0] == 5).all()
    assert (decoded[:, 1:] == 0).all()


def progressive(scans):
    """A progressive JPEG whose last scan, which adds nothing, comes again and again."""
    data = encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_may_go_over_its_pixels_only_so_often():
    assert images.decode(progressive(64), LIMIT).shape == (16, 16, 3)
    with pytest.raises(BadImageError, match="64"):
        images.decode(progressive(65), LIMIT)
    # As where a telephone appends a film.
    film = b"\xff\xda" * 1000
    assert images.decode(progressive(64) + film, LIMIT).shape == (16, 16, 3)


def test_a_thumbnail_in_the_metadata_is_no_scan():
    thumbnail = b"Exif\0\0" + b"\xff\xda" * 1000
    data = encoded(Image.fromarray(gradient()), "JPEG")
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    np.testing.assert_array_equal(
        images.decode(data[:2] + segment + data[2:], LIMIT), images.decode(data, LIMIT)
    )


def test_a_machine_without_memory_is_not_the_pictures_fault(monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(images, "_flat", refuse)
    with pytest.raises(MemoryError):
        images.decode(encoded(Image.fromarray(gradient()), "PNG"), LIMIT)


def animated_gif(width, height, disposal):
    frames = [Image.new("P", (4, 4), colour) for colour in (0, 1)]
    options = {"save_all": True, "append_images": frames[1:], "disposal": disposal}
    data = bytearray(encoded(frames[0], "GIF", **options))
    frame = data.find(b"\x2c") + 5
    data[6:10] = data[frame : frame + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def animated_webp(width, height):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    canvas = data.find(b"VP8X") + 12
    data[canvas : canvas + 3] = struct.pack("<I", width - 1)[:3]
    data[canvas + 3 : canvas + 6] = struct.pack("<I", height - 1)[:3]
    return bytes(data)


def huge(name):
    side = 30_000
    if name == "PNG":
        return png(side, side, 8, 2, [b""])
    if name == "GIF":
        return animated_gif(side, side, 2)
    if name == "WEBP":
        return animated_webp(side, side)
    data = bytearray(encoded(Image.new("RGB", (8, 8)), name))
    if name == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        frame = data.find(b"\xff\xc0") + 5
        data[frame : frame + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("read", [images.size, images.decode])
def test_too_many_pixels_are_refused_before_anything_is_allocated(name, read):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLargeError, match="50000000"):
        read(huge(name), LIMIT)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"{grown} KiB"


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_itself_is_accepted(name):
    data = encoded(Image.new("RGB", (10, 10)), name)
    assert images.decode(data, 100).shape == (10, 10, 3)
    for limit in (99, 49):
        with pytest.raises(TooLargeError, match=f" {limit} "):
            images.decode(data, limit)
