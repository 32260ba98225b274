"""Damages pictures of every format, colour mode and kind in every way, and has them decoded.

    python -m tests.fuzz.images --count 20000 --seed 0

Whatever happens but a picture or one of the documented errors ends it, the seed and the mutant's
number being told; so do a mutant that takes long, and memory that grows.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from app import images
from app.errors import BadImageError, TooLargeError, UnsupportedImageTypeError

MAX_PIXELS = 1_000_000
#: A picture of so many pixels takes a hundredth of it.
MAX_SECONDS = 5.0
#: What decoders may take for so many pixels, caches included.
MAX_GROWTH = 200 * 2**20
#: Where programmers err.
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

MODES = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGBA"),
}


def corpus() -> list[tuple[str, bytes]]:
    """Pictures that are whole, with their names: small, so that damage strikes every part."""
    # Flat parts and noise: both of what compression does.
    pixels = np.full((19, 23, 3), 90, np.uint8)
    pixels[4:15, 6:20] = np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []

    def add(kind: str, name: str, mode: str, **options: object) -> None:
        buffer = io.BytesIO()
        shown = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        shown.save(buffer, name, **options)
        found.append((f"{name} {mode} {kind}".strip(), buffer.getvalue()))

    for name, modes in MODES.items():
        for mode in modes:
            add("", name, mode)
    for name in ("JPEG", "PNG", "WEBP"):
        add("EXIF", name, "RGB", exif=exif)
    for name in ("GIF", "WEBP", "PNG"):
        frames = [Image.new("RGB", (23, 19), colour) for colour in ("red", "blue")]
        add("animated", name, "RGB", save_all=True, append_images=frames, duration=10)
    add("progressive", "JPEG", "RGB", progressive=True)
    add("subsampled", "JPEG", "RGB", subsampling=2, quality=30)
    add("two pictures", "MPO", "RGB", save_all=True, append_images=[picture])
    add("lossless", "WEBP", "RGBA", lossless=True)
    add("a transparent colour", "PNG", "RGB", transparency=(90, 90, 90))
    add("a transparent entry", "PNG", "P", transparency=3)
    add("interlaced", "GIF", "P", interlace=1)
    found.append(("BMP run-length encoded", run_length_encoded()))
    return found


def run_length_encoded(
    width: int = 9, height: int = 2, data: bytes = b"\x05\x01\x04\x02\0\0\x09\x03\0\0\0\x01"
) -> bytes:
    """A BMP of a kind that Pillow does not write: 8 bits in runs, colour n being (n, n, n)."""
    palette = b"".join(struct.pack("4B", level, level, level, 0) for level in range(256))
    start = 54 + len(palette)
    file = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return file + header + palette + data


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Damaged pictures with the names of what they were."""
    chance = random.Random(seed)
    whole = corpus()
    for number in range(count):
        name, data = whole[number % len(whole)]
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            chance.choice(DAMAGES)(damaged, chance, chance.choice(whole)[1])
        # Checksums would end the reading of nearly all mutants where it begins.
        mended = name.startswith("PNG") and chance.random() < 0.8
        yield name, with_checksums(damaged) if mended else bytes(damaged)


def decode(data: bytes) -> str:
    """What becomes of a picture: `decoded`, or the name of a documented error."""
    try:
        width, height = images.size(data, MAX_PIXELS)
        decoded = images.decode(data, MAX_PIXELS)
    except (BadImageError, TooLargeError, UnsupportedImageTypeError) as error:
        return type(error).__name__
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert decoded.shape in ((height, width, 3), (width, height, 3)), (decoded.shape, width, height)
    return "decoded"


def run(seed: int, count: int) -> Counter[str]:
    """Decode so many mutants; returns how many came to what."""
    outcomes: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number, (name, data) in enumerate(mutants(seed, count)):
        begin = time.perf_counter()
        try:
            outcomes[decode(data)] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}, mutant {number} of a {name}: {data[:64]!r}...")
            raise
        seconds = time.perf_counter() - begin
        assert seconds < MAX_SECONDS, f"seed {seed}, mutant {number} of a {name}: {seconds} s"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < MAX_GROWTH, f"{grown} bytes"
    return outcomes


# ------------------------------------------------------------------------------------- the damage

Damage = Callable[[bytearray, random.Random, bytes], None]


def flip_a_bit(data: bytearray, chance: random.Random, _: bytes) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def change_a_byte(data: bytearray, chance: random.Random, _: bytes) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def put_a_number(data: bytearray, chance: random.Random, _: bytes) -> None:
    form = chance.choice((">H", "<H", ">I", "<I"))
    size = struct.calcsize(form)
    # Headers are where numbers mean most.
    place = chance.randrange(max(min(len(data), chance.choice((64, len(data)))) - size, 1))
    number = chance.choice(NUMBERS) & (256**size - 1)
    data[place : place + size] = struct.pack(form, number)


def end_early(data: bytearray, chance: random.Random, _: bytes) -> None:
    del data[chance.randint(0, len(data)) :]


def lose_a_part(data: bytearray, chance: random.Random, _: bytes) -> None:
    start = chance.randint(0, len(data))
    del data[start : start + chance.randint(1, 40)]


def repeat_a_part(data: bytearray, chance: random.Random, _: bytes) -> None:
    start = chance.randint(0, len(data))
    data[start:start] = data[start : start + chance.randint(1, 80)] * chance.choice((1, 2, 50))


def put_rubbish(data: bytearray, chance: random.Random, _: bytes) -> None:
    place = chance.randint(0, len(data))
    data[place:place] = chance.randbytes(chance.randint(1, 200))


def put_part_of_another(data: bytearray, chance: random.Random, other: bytes) -> None:
    place, start = chance.randint(0, len(data)), chance.randint(0, len(other))
    data[place:place] = other[start : start + chance.randint(1, 400)]


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    change_a_byte,
    put_a_number,
    end_early,
    lose_a_part,
    repeat_a_part,
    put_rubbish,
    put_part_of_another,
)


def with_checksums(data: bytes | bytearray) -> bytes:
    """A PNG whose chunks have the checksums that they should."""
    mended = bytearray(data)
    place = 8
    while place + 12 <= len(mended):
        end = place + 8 + int.from_bytes(mended[place : place + 4])
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[place + 4 : end]))
        place = end + 4
    return bytes(mended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for outcome, count in run(options.seed, options.count).most_common():
        print(f"{outcome:>30} {count}")


if __name__ == "__main__":
    main()
