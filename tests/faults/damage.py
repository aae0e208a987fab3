"""Files as a bad disk, an incomplete copy or a crash leaves them: cut, a bit flipped, some bytes zeroed, emptied."""

from pathlib import Path
from random import Random

WAYS = ("cut", "empty", "flipped", "flipped in the footer", "zeroed", "longer")
FOOTER = 8  # a Parquet file ends with the footer's length and a magic word


def flip(data: bytes, index: int, bit: int = 0) -> bytes:
    """The bytes with one bit flipped."""
    return data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]


def damage(data: bytes, random: Random) -> dict[str, bytes]:
    """The bytes damaged in each of the ways, at random positions."""
    index, end = random.randrange(len(data)), len(data)
    start = end - FOOTER - int.from_bytes(data[-FOOTER : -FOOTER // 2], "little") if end > FOOTER else 0
    footer = random.randrange(min(max(start, 0), end - 1), end)
    return {
        "cut": data[:index],
        "empty": b"",
        "flipped": flip(data, index, random.randrange(8)),
        "flipped in the footer": flip(data, footer, random.randrange(8)),
        "zeroed": data[:index] + bytes(len(data[index : index + 64])) + data[index + 64 :],
        "longer": data + data[:index],
    }


def damage_file(file: Path, way: str, random: Random) -> str:
    """Damage a file in one of the ways; a description for messages."""
    file.write_bytes(damage(file.read_bytes(), random)[way])
    return f"{file} {way}"
