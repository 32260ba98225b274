"""Bytes to an image: what it is, how large it is, and its pixels, upright and in RGB.

Pillow reads the headers, the rare modes and nearly every format: it is right about them, and
strict. The pixels of ordinary JPEGs, which is what nearly everybody sends, come from OpenCV: the
same pixels in 5.0 ms for bus.jpg on one core where Pillow and the way out of it need 8.5 (13 and 21
for 1920x1080), and as strict with files that end early. So do those of run-length encoded BMPs,
which Pillow unpacks in Python: a file of 1 kB that is 50 million pixels keeps it busy for 18 s.
"""

from __future__ import annotations

import re
import warnings
from io import BytesIO
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from app.errors import BadImageError, TooLargeError, UnsupportedImageTypeError

#: Formats that are read, in words.
ACCEPTED = "JPEG, PNG, WebP, BMP and GIF (its first frame)"

#: How each format begins, in Pillow's names.
_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
}

#: A JPEG's markers but for those that stand alone inside of its data, and its end.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
#: Each goes over all pixels, even where it adds nothing and takes 75 bytes: 42 ms at 50 million
#: pixels. What encoders write has 10, with 4 colours 18.
_MAX_SCANS = 64

# What is wrong with a client's picture is for the client, not a line on the standard error each.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Pillow warns of what is a little above its limit and refuses what is twice as large.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def sniff(data: bytes) -> str:
    """The format of an encoded image by its first bytes, in Pillow's name for it.

    Raises:
        BadImageError: there are no bytes.
        UnsupportedImageTypeError: they do not begin as any format that is read.
    """
    if not data:
        raise BadImageError("The image is empty: 0 bytes.")
    for name, signatures in _SIGNATURES.items():
        if data.startswith(signatures):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise UnsupportedImageTypeError(
        f"The content is not an image of a format that is read: {ACCEPTED}."
    )


def size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height by the header: no pixel is decoded, and none turned upright.

    Raises:
        BadImageError: the header is damaged.
        TooLargeError: more pixels than `max_pixels`.
        UnsupportedImageTypeError: not an image of a format that is read.
    """
    return _open(data, max_pixels).size


def decode(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decode an image.

    Transparent parts are laid on white, 16 bits are scaled down to 8, and of an animation the first
    frame is taken. Colour profiles are not applied: nobody's training data had them applied.

    Args:
        data: the encoded image.
        max_pixels: more are refused before any is decoded.

    Returns:
        `(H, W, 3)` uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        BadImageError: it is damaged, or ends early.
        TooLargeError: more pixels than `max_pixels`.
        UnsupportedImageTypeError: not an image of a format that is read.
    """
    picture = _open(data, max_pixels)
    jpeg = sniff(data) == "JPEG"
    if jpeg:
        _check_scans(data)
    try:
        if (jpeg and picture.mode in ("L", "RGB")) or _is_run_length_encoded(picture):
            pixels = _decode_by_opencv(data)
        else:
            pixels = np.array(_flat(picture))
    except MemoryError:
        raise  # not the picture's fault
    except Exception as error:
        # Decoders that are fed anything raise anything.
        raise BadImageError("The image is damaged or ends early.") from error
    return _upright(pixels, _orientation(picture))


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG that goes over its pixels for ever."""
    # Nearly always this is the answer. Behind the picture's end there may be anything, as a film.
    if data.count(_SCAN) <= _MAX_SCANS:
        return
    scans, position = 0, 2
    while (marker := _MARKER.search(data, position)) and marker[0] != _END:
        scans += marker[0] == _SCAN
        if scans > _MAX_SCANS:
            raise BadImageError(
                f"The JPEG image has more scans than the {_MAX_SCANS} that are accepted."
            )
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def _is_run_length_encoded(picture: Image.Image) -> bool:
    """Whether it is a BMP whose pixels Pillow would unpack in Python."""
    return any(tile.codec_name == "bmp_rle" for tile in getattr(picture, "tile", ()))


def _decode_by_opencv(data: bytes) -> npt.NDArray[np.uint8]:
    # Orientation is left alone: it is undone in one way for all formats.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    return cast("npt.NDArray[np.uint8]", pixels)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    too_large = TooLargeError(f"The image has more pixels than the {max_pixels} that are accepted.")
    # Also heeded where Pillow allocates while it reads a header, as for some animations.
    Image.MAX_IMAGE_PIXELS = max_pixels
    name = sniff(data)
    try:
        picture = Image.open(BytesIO(data), formats=(name,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:
        raise BadImageError(f"The {name} image's header is damaged or ends early.") from error
    # Pillow's is process-wide, and so is how warnings are treated: do not depend on them alone.
    if picture.width * picture.height > max_pixels:
        raise too_large
    return picture


def _flat(picture: Image.Image) -> Image.Image:
    """Any mode to RGB."""
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it; of 16-bit colour it takes, as here,
        # the high byte.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=picture)
    return paper


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Whatever is wrong with a photo's metadata, its pixels have been read.
        return 1


def _upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo how a camera was held: 5 to 8 lie on their side, each half has two that are mirrored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
