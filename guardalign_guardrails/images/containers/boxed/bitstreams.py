"""The sizes that AV1 and HEVC streams state themselves, because a decoder allocates those, whatever the boxes say."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from guardalign_guardrails.images.limits import refusal

_SEQUENCE_HEADER: Final = 1
_SEQUENCE_PARAMETERS: Final = 33
# Of a still, or of one tile of it.
_MAX_UNITS: Final = 256
# Of a unit with parameters only the beginning is needed.
_HEAD_BYTES: Final = 512


class _Bits:
    """Reads numbers bit by bit.

    Args:
        data: Read from its first bit on; reading on after its end is refused as ``truncated``.
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """The next ``count`` bits as a number."""
        self._left -= count
        if self._left < 0:
            raise refusal("truncated")
        return self._value >> self._left & ((1 << count) - 1)

    def exponential(self) -> int:
        """The next number in Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise refusal("corrupt")
        return (1 << zeros) - 1 + self.take(zeros)


def av1_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of each sequence header in an AV1 item.

    Raises:
        ImageDecodeError: ``corrupt`` or ``truncated`` if its units cannot be walked.
    """
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return
        head = data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size, at = _leb128(data, at)
        if head & 0x80 or at + size > len(data):
            raise refusal("truncated" if not head & 0x80 else "corrupt")
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _av1_size(_Bits(data[at : at + min(size, _HEAD_BYTES)]))
        at += size
    raise refusal("corrupt")


def hevc_sizes(data: bytes, length_bytes: int) -> Iterator[tuple[int, int]]:
    """Width and height of each set of sequence parameters in an HEVC item, whose units have lengths before them."""
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if at + size > len(data):
            raise refusal("truncated")
        yield from _unit_sizes(data[at : at + size])
        at += size
    raise refusal("corrupt")


def hevc_configured(record: bytes) -> tuple[int, list[tuple[int, int]]]:
    """How many bytes a unit's length has, and the sizes stated, in an HEVC decoder configuration record."""
    found: list[tuple[int, int]] = []
    at = 23
    for _ in range(record[22]):
        (count,) = struct.unpack_from(">H", record, at + 1)
        at += 3
        for _ in range(count):
            (size,) = struct.unpack_from(">H", record, at)
            if at + 2 + size > len(record):
                raise refusal("truncated")
            found += _unit_sizes(record[at + 2 : at + 2 + size])
            at += 2 + size
    return (record[21] & 3) + 1, found


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, at + index + 1
    raise refusal("corrupt")


def _av1_size(bits: _Bits) -> tuple[int, int]:
    bits.take(4)  # Profile and whether it is a still.
    if bits.take(1):
        bits.take(5)
    else:
        model = bits.take(1) and _av1_timing(bits)
        has_delays = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if model and bits.take(1):
                bits.take(2 * model + 1)
            if has_delays and bits.take(1):
                bits.take(4)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


def _av1_timing(bits: _Bits) -> int:
    """Skip timing; the number of bits of a decoder's delays, 0 without a model of it."""
    bits.take(64)
    if bits.take(1):
        bits.exponential()
    if not bits.take(1):
        return 0
    length = bits.take(5) + 1
    bits.take(42)
    return length


def _unit_sizes(unit: bytes) -> Iterator[tuple[int, int]]:
    if len(unit) < 3 or unit[0] >> 1 & 63 != _SEQUENCE_PARAMETERS:
        return
    # A third zero byte cannot be in a row; 3 is put before it and means nothing.
    bits = _Bits(unit[2:_HEAD_BYTES].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1)
    bits.take(96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.exponential()
    if bits.exponential() == 3:
        bits.take(1)
    yield bits.exponential(), bits.exponential()
