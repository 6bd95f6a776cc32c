"""The result of every container walk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# Real files have a few hundred parts; a file with more is built to keep a parser busy.
MAX_PARTS: Final = 200_000


@dataclass(frozen=True)
class Container:
    """A file whose structure has been walked and bounded.

    Attributes:
        format: Pillow's name of the format.
        data: The parts that make pixels, in the same format; metadata is left out where that is cheap.
        size: Width and height in pixels of the largest frame or page.
        frame_count: Frames or pages, counted rather than believed.
        orientations: EXIF orientation 1-8; one for all frames, or one per page.
        other_orientations: Orientations 1-8 that XMP or others state for the first frame; empty for none.
        profile: The embedded ICC profile, empty if there is none or it could not be read.
        gamma: Encoding exponent that overrules the usual one of 1/2.2, 0 if none does.
        is_composited: True if a frame can only be drawn on top of the earlier ones.
        is_lossy: True if its pixels were compressed with loss.
        palette_size: Colours in the palette of a still, 0 if it has none or that is not known.
        hidden_frames: Further frames or images that the file states and that are not opened.
        departures: Why readers may disagree on what the file shows, sorted short codes such as ``trailing_data``;
            empty if the file holds only what is on its format's list. Whether a pixel is transparent and what a
            profile does are left to the decoder.
    """

    format: str
    data: bytes = field(repr=False)
    size: tuple[int, int]
    frame_count: int = 1
    orientations: tuple[int, ...] = (1,)
    other_orientations: tuple[int, ...] = ()
    profile: bytes = field(default=b"", repr=False)
    gamma: float = 0.0
    is_composited: bool = False
    is_lossy: bool = False
    palette_size: int = 0
    hidden_frames: int = 0
    departures: tuple[str, ...] = ()

    def orientation(self, frame: int) -> int:
        """EXIF orientation of one frame."""
        return self.orientations[min(frame, len(self.orientations) - 1)]


def join(parts: list[memoryview], data: bytes) -> bytes:
    """The kept parts as one file; ``data`` itself when nothing was left out, so that big files are not copied."""
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)
