"""An AVIF file to the sizes of its coded pictures, read from their own headers before anything is decoded.

The container states a size too, but a decoder allocates what the coded picture says, and scales the result down to the
container's size. So a file of a kilobyte that claims 64 x 64 pixels can take a gigabyte. The formats are those of ISO
14496-12 (boxes), ISO 23008-12 (items) and the AV1 specification (sequence headers, section 5.5).
"""

import struct
from collections.abc import Iterator

MAX_PARTS = 100_000  # boxes, items or units of a file; a file for viewers has a few hundred
CONTAINERS = {b"moov", b"trak", b"mdia", b"minf"}
PICTURE = b"av01"
SEQUENCE_HEADER = 1


def coded_sizes(data: bytes) -> list[tuple[int, int]]:
    """Width and height of every sequence header of the file's pictures and of its tracks' first samples.

    Raises ValueError, IndexError or struct.error for a file that is broken.
    """
    sizes, units = list[tuple[int, int]](), 0
    for payload in (*_items(data), *_samples(data)):
        for size in _sizes(payload):
            units += 1
            if units > MAX_PARTS:
                raise ValueError("too many parts")
            sizes += [size] if size else []
    return sizes


class _Bits:
    """Bits of a header, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        start, self._at = self._at, self._at + count
        if self._at > 8 * len(self._data):
            raise ValueError("a header ends early")
        number = int.from_bytes(self._data[start >> 3 : (self._at + 7) >> 3], "big")
        return (number >> (-self._at & 7)) & ((1 << count) - 1)

    def variable(self) -> None:
        """Pass a number of variable length."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        self.take(zeros)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box."""
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        size, kind, head = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else start + size
        if (size and size < head) or stop > end:
            return
        yield kind, start + head, stop
        start = stop
    raise ValueError("too many boxes")


def _items(data: bytes) -> Iterator[bytes]:
    """The bytes of every item that is a coded picture."""
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            within = {name: (first, last) for name, first, last in _boxes(data, start + 4, end)}
            if b"iloc" in within and b"iinf" in within:
                pictures = set(_pictures(data, *within[b"iinf"]))
                located = _located(data, *within[b"iloc"], within.get(b"idat", (0, 0))[0])
                yield from (payload for item, payload in located if item in pictures)


def _pictures(data: bytes, start: int, end: int) -> Iterator[int]:
    """The numbers of the coded pictures in a box `iinf`."""
    for kind, first, _ in _boxes(data, start + (8 if data[start] else 6), end):
        wide = 4 if data[first] == 3 else 2
        number, name = first + 4, first + 6 + wide
        if kind == b"infe" and data[name : name + 4] == PICTURE:
            yield int.from_bytes(data[number : number + wide], "big")


def _located(data: bytes, start: int, end: int, own: int) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of the items of a box `iloc`; `own` is where the data of its construction method 1 begins."""
    version, sizes = data[start], data[start + 4 : start + 6]
    bits = _Bits(data[start + 6 : end])
    wide = 32 if version == 2 else 16
    offset, length, base, index = 8 * (sizes[0] >> 4), 8 * (sizes[0] & 15), 8 * (sizes[1] >> 4), 8 * (sizes[1] & 15)
    total = 0
    for _ in range(min(bits.take(wide), MAX_PARTS)):
        item = bits.take(wide)
        method = bits.take(16) & 15 if version else 0
        bits.take(16)
        begin, pieces = bits.take(base) + (own if method == 1 else 0), []
        for _ in range(bits.take(16)):
            bits.take(index if version else 0)
            first, size = begin + bits.take(offset), bits.take(length)
            pieces.append(data[first : first + size] if size else data[first:])
            total += len(pieces[-1])
            if total > 2 * len(data) or len(pieces) > MAX_PARTS:
                raise ValueError("items that overlap")
        yield item, b"".join(pieces)


def _samples(data: bytes) -> Iterator[bytes]:
    """The first sample of every track."""
    pending = list(_boxes(data, 0, len(data)))
    for kind, start, end in pending:
        if kind in CONTAINERS:
            pending += _boxes(data, start, end)
            if len(pending) > MAX_PARTS:
                raise ValueError("too many boxes")
        elif kind == b"stbl":
            within = {name: first for name, first, _ in _boxes(data, start, end)}
            if b"stsz" in within and (b"stco" in within or b"co64" in within):
                same, _, own = struct.unpack_from(">III", data, within[b"stsz"] + 4)
                wide = b"co64" in within
                (first,) = struct.unpack_from(">Q" if wide else ">I", data, within[b"co64" if wide else b"stco"] + 8)
                yield data[first : first + (same or own)]


def _sizes(payload: bytes) -> Iterator[tuple[int, int] | None]:
    """The size of each unit of an item or a sample that is a sequence header; None for any other unit."""
    start = 0
    while start < len(payload):
        kind, extended, sized = payload[start] >> 3 & 15, payload[start] & 4, payload[start] & 2
        start += 2 if extended else 1
        size, shift = 0, 0
        while sized and shift < 64:
            size |= (payload[start] & 127) << shift
            start, shift, sized = start + 1, shift + 7, payload[start] & 128
        stop = start + size if shift else len(payload)
        yield _size(_Bits(payload[start : min(stop, start + 256)])) if kind == SEQUENCE_HEADER else None
        start = stop


def _size(bits: _Bits) -> tuple[int, int]:
    """The largest picture that a sequence header allows."""
    bits.take(4)
    still = bits.take(1)
    if still:
        bits.take(5)
    else:
        _pass_operating_points(bits)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    if still:
        return bits.take(wide) + 1, bits.take(high) + 1
    return 1 << wide, 1 << high  # each picture of a sequence may have a size of its own, of that many bits


def _pass_operating_points(bits: _Bits) -> None:
    """Pass what precedes the size in a sequence header that is not of a still picture."""
    delay = 0
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            bits.variable()
        if bits.take(1):
            delay = bits.take(5) + 1
            bits.take(42)
    displayed = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay and bits.take(1):
            bits.take(2 * delay + 1)
        if displayed and bits.take(1):
            bits.take(4)
