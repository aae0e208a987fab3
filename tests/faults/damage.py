"""Files as a bad disk, a torn copy or a crash leaves them: cut, a bit flipped, a run of bytes zeroed, emptied."""

from pathlib import Path
from random import Random

WAYS = ("cut", "empty", "flipped", "flipped in the footer", "zeroed", "longer")
FOOTER = 8  # a Parquet file ends in the footer's length and a magic word


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """The bytes with one bit turned over."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def ways(data: bytes, random: Random) -> dict[str, bytes]:
    """One damage of each kind, at random places."""
    at, end = random.randrange(len(data)), len(data)
    start = end - FOOTER - int.from_bytes(data[-FOOTER : -FOOTER // 2], "little") if end > FOOTER else 0
    footer = random.randrange(min(max(start, 0), end - 1), end)
    return {
        "cut": data[:at],
        "empty": b"",
        "flipped": flipped(data, at, random.randrange(8)),
        "flipped in the footer": flipped(data, footer, random.randrange(8)),
        "zeroed": data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :],
        "longer": data + data[:at],
    }


def harm(file: Path, way: str, random: Random) -> str:
    """Damage a file in one of the ways; what was done, for a message."""
    file.write_bytes(ways(file.read_bytes(), random)[way])
    return f"{file} {way}"
