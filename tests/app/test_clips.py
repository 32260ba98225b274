import struct

import av
import numpy as np
import pytest

from app.clips import Clip, ClipError, ClipWriter

PIXELS = 10_000
SIZE = (48, 64)
TIMES = [0.0, 0.033, 0.2, 0.25, 0.9, 1.0]


def picture(number=0, size=SIZE):
    """Red in the first corner, green in the one right of it, and brighter in each frame."""
    image = np.full((*size, 3), 20 * number, np.uint8)
    image[:16, :16] = (250, 0, 0)
    image[:16, -16:] = (0, 250, 0)
    return image


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "clip.mp4"
    with ClipWriter(path, 30) as clip:
        for number, seconds in enumerate(TIMES):
            clip.write(picture(number), seconds)
    return path


def read(path):
    with Clip(path, PIXELS) as clip:
        return list(clip)


def like(pixel, colour):
    return np.abs(pixel.astype(int) - colour).max() < 30


def test_frames_come_back_in_order_with_their_own_times(path):
    with Clip(path, PIXELS) as clip:
        assert clip.frames == len(TIMES)
        frames = list(clip)
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.seconds for frame in frames] == pytest.approx(TIMES, abs=1e-4)
    for frame in frames:
        assert frame.image.shape == (*SIZE, 3)
        assert like(frame.image[4, 4], (250, 0, 0))
        assert like(frame.image[40, 32], [20 * frame.number] * 3)


def test_it_is_what_browsers_play(path):
    with av.open(str(path)) as file:
        [stream] = file.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("degrees", "matrix", "red", "green"),
    [
        (90, (0, 1, -1, 0, 48, 0), (4, -5), (-5, -5)),
        (180, (-1, 0, 0, -1, 64, 48), (-5, -5), (-5, 4)),
        (270, (0, -1, 1, 0, 0, 64), (-5, 4), (4, 4)),
    ],
)
def test_how_the_phone_was_held_is_undone(path, degrees, matrix, red, green):
    data = path.read_bytes()
    # Of the track's header in the first version of its layout, ISO 14496-12, 8.3.2.
    start = data.index(b"tkhd") + 44
    a, b, c, d, x, y = (65536 * value for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
    path.write_bytes(data[:start] + turned + data[start + 36 :])
    image = read(path)[0].image
    assert image.shape == ((*SIZE, 3) if degrees == 180 else (*SIZE[::-1], 3))
    assert like(image[red], (250, 0, 0))
    assert like(image[green], (0, 250, 0))


def test_odd_sizes_grow_by_a_pixel(tmp_path):
    path = tmp_path / "odd.mkv"
    with ClipWriter(path, 25) as clip:
        clip.write(picture(3, (47, 63)), 0.0)
    [frame] = read(path)
    assert frame.image.shape == (48, 64, 3)
    assert like(frame.image[-1, -1], [60] * 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "cannot be read as a video"), (b"hello world\n" * 50, "cannot be read as a video")],
)
def test_what_is_no_video(tmp_path, data, words):
    path = tmp_path / "no.mp4"
    path.write_bytes(data)
    with pytest.raises(ClipError, match=f"no.mp4: {words}"):
        Clip(path, PIXELS)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Clip(tmp_path / "no.mp4", PIXELS)


def test_sound_alone(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ClipError, match=r"sound\.mp4: there is sound in it, but no video"):
        Clip(path, PIXELS)


def test_frames_that_are_too_large(path):
    with pytest.raises(ClipError, match="3072 pixels, of which 3071 are accepted"):
        Clip(path, 3071)


def test_what_is_damaged_is_counted_and_the_rest_is_read(path):
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        places = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    start, size = places[2]
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    with Clip(path, PIXELS) as clip:
        frames = list(clip)
        assert clip.damaged == 1
    assert len(frames) == len(TIMES) - 1


def test_what_ends_early_is_read_up_to_there(tmp_path):
    path = tmp_path / "cut.ts"
    random = np.random.default_rng(0)
    with ClipWriter(path, 30) as clip:
        for number in range(90):
            clip.write(random.integers(0, 255, (*SIZE, 3), np.uint8), number / 30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = read(path)
    assert 20 < len(frames) < 60
    assert frames[0].seconds == 0
    assert (np.diff([frame.seconds for frame in frames]) > 0).all()


def test_a_folder_that_is_not_there_cannot_be_written_into(tmp_path):
    clip = ClipWriter(tmp_path / "no" / "clip.mp4", 30)
    with pytest.raises(ClipError, match=r"clip\.mp4: cannot be written: No such file"), clip:
        clip.write(picture(), 0.0)
