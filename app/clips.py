"""Video files, read and written by PyAV, which is FFmpeg.

It keeps each frame's own time, so that frames at uneven distances stay so; it knows how a phone was
held; and it writes H.264, which every browser plays and the FFmpeg inside OpenCV's wheels does not
write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

#: How the names of videos end that can be written: the containers of H.264.
WRITTEN = (".mp4", ".mov", ".mkv")
#: H.264's usual clock: whatever the frame rate, a frame's time is a whole number of its ticks.
_CLOCK = Fraction(1, 90_000)
#: x264's measures of quality and of time: hard to tell from the original, and fast.
_ENCODING = {"crf": "20", "preset": "veryfast"}
#: Where a file does not say.
_FRAMES_PER_SECOND = 30.0


class ClipError(ValueError):
    """A video that cannot be read or written: the message says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video."""

    number: int
    """From 0."""
    seconds: float
    """Since the first one."""
    image: npt.NDArray[np.uint8]
    """`(H, W, 3)` RGB, upright; the same size in all of them."""


class Clip:
    """A video to read, once: a context manager.

    Args:
        path: the file.
        max_pixels: of a frame.

    Attributes:
        fps: frames a second, on average.
        frames: how many there are, if the file says so.
        damaged: pieces that could not be decoded so far: frames are missing there.

    Raises:
        ClipError: it is no video, or its frames are too large.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path = path
        try:
            self._container = av.open(str(path))
        except FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise ClipError(f"{path}: cannot be read as a video") from error
        if not self._container.streams.video:
            self._container.close()
            raise ClipError(f"{path}: there is sound in it, but no video")
        self._stream = self._container.streams.video[0]
        # Slices share a frame's work. Whole frames would be faster, but where one is damaged those
        # that are under way at the same time are lost with it.
        self._stream.thread_type = "SLICE"
        pixels = self._stream.width * self._stream.height
        if pixels > max_pixels:
            self._container.close()
            raise ClipError(
                f"{path}: a frame has {pixels} pixels, of which {max_pixels} are accepted"
            )
        self.fps = float(
            self._stream.average_rate or self._stream.guessed_rate or _FRAMES_PER_SECOND
        )
        self.frames = self._stream.frames or None
        self.damaged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """All frames that can be decoded; what cannot be is counted, and passed over."""
        start = last = 0.0
        width = height = 0
        for number, frame in enumerate(self._decoded()):
            if not number:
                start, width, height = frame.time or 0.0, frame.width, frame.height
            elif frame.time is None or frame.time - start <= last:
                # A damaged file's frames may go back in time; nobody's tracks can.
                last += 1 / self.fps
            else:
                last = frame.time - start
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            # PyAV counts anticlockwise, as NumPy does.
            upright = np.rot90(pixels, round(frame.rotation / 90))
            yield Frame(number, last, np.ascontiguousarray(upright))

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except FFmpegError as error:
                self.damaged += 1
                if not isinstance(error, ValueError):
                    return  # Of the file itself, not of a piece of it: it would not end.
                continue
            yield from frames


class ClipWriter:
    """A video to write, without sound: a context manager. Its first frame decides on its size.

    Args:
        path: the file; its name's ending, one of `WRITTEN`, is the container's.
        fps: what is noted in the file; the frames have their own times.

    Raises:
        ClipError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        # What a browser needs to begin is at the file's beginning.
        options = {} if path.suffix.lower() == ".mkv" else {"movflags": "faststart"}
        with self._telling():
            self._container = av.open(str(path), "w", options=options)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: VideoStream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the file: it can be played, however it came to its end."""
        with self._telling():
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()

    def write(self, image: npt.NDArray[np.uint8], seconds: float) -> None:
        """Write one more frame.

        Args:
            image: `(H, W, 3)` RGB.
            seconds: when it is shown.

        Raises:
            ClipError: the file cannot be written.
        """
        # H.264's colours, as all players read them, come for two by two pixels.
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = cast(
                "npt.NDArray[np.uint8]",
                cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE),
            )
        with self._telling():
            if self._stream is None:
                self._stream = self._container.add_stream(
                    "libx264", rate=self._rate, options=dict(_ENCODING)
                )
                self._stream.height, self._stream.width = image.shape[:2]
                self._stream.pix_fmt = "yuv420p"
                self._stream.codec_context.time_base = _CLOCK
            frame = VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(seconds / _CLOCK), _CLOCK
            self._container.mux(self._stream.encode(frame))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except FFmpegError as error:
            raise ClipError(f"{self._path}: cannot be written: {error.strerror}") from error
