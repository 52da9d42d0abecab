"""Damages files at random: bits, cuts, other headers, absurd sizes, odd JSON values."""

import copy
import json
import random
import struct
import zlib
from typing import Any

SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 13_000, 65_500)
"""Numbers that a header may claim."""

HEADERS = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
    b"GIF89a\xff\xff\xff\xff\xf7\x00\x00",
    b"II*\x00\x08\x00\x00\x00\xff\xff",
    b"MM\x00*\x00\x00\x00\x08\xff\xff",
    b"BM\xff\xff\xff\x7f\x00\x00\x00\x006\x00\x00\x00(\x00\x00\x00",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"PK\x03\x04",
    b"\x80\x02cos\nsystem\n",
    b"<html>",
)

ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    2**63,
    10**400,
    0.5,
    "",
    "../../../etc/passwd",
    "__import__('os').system('true')",
    "\x00",
    "\ud800",
    [],
    [[]],
    [None],
    {},
    {"": 0},
)
"""JSON values that few readers expect."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes that differ from `content`."""
    ways = (_flipped, _flipped, _cut, _spliced, _sized, _sized, _moved, _blank, _inserted)
    if content.startswith(b"\x89PNG"):
        ways += (_png_chunk,) * 4
    while True:
        result = content
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            result = rng.choice(ways)(result, rng) if result else result
        if result != content:
            return result


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with other values, without keys or with more; or not JSON any more."""
    if rng.random() < 0.2:
        return damaged(content, rng)
    while True:
        value = json.loads(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            _change(value, rng)
        result = json.dumps(value).encode(errors="surrogatepass")
        if json.loads(result) != json.loads(content):
            return result


def _change(value: Any, rng: random.Random) -> None:
    """Changes one value somewhere in a tree."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        inside = value[key]
        if isinstance(inside, dict | list) and inside and rng.random() < 0.85:
            value = inside
            continue
        way = rng.random()
        if way < 0.15:
            del value[key]
        elif way < 0.3 and isinstance(value, list):
            value.append(copy.deepcopy(inside))
        elif way < 0.4 and isinstance(inside, int | float):
            value[key] = rng.choice((-inside, inside + 1, inside * 1000, str(inside), [inside]))
        else:
            value[key] = copy.deepcopy(rng.choice(ODD))  # a later change may go into it
        return


def _flipped(content: bytes, rng: random.Random) -> bytes:
    result = bytearray(content)
    # The beginning of a file says what the rest means.
    end = min(len(result), 64) if rng.random() < 0.4 else len(result)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        result[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(result)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _spliced(content: bytes, rng: random.Random) -> bytes:
    header = rng.choice(HEADERS)
    return header + content[rng.choice((0, len(header), rng.randrange(len(content)))) :]


def _sized(content: bytes, rng: random.Random) -> bytes:
    """An absurd number, of two or four bytes, of either order."""
    result = bytearray(content)
    width = rng.choice((2, 4))
    number = rng.choice(SIZES) & (256**width - 1)
    place = rng.randrange(min(len(result), 128) if rng.random() < 0.7 else len(result))
    result[place : place + width] = number.to_bytes(width, rng.choice(("big", "little")))
    return bytes(result)


def _moved(content: bytes, rng: random.Random) -> bytes:
    """A part of the file in another place too."""
    start, place = rng.randrange(len(content)), rng.randrange(len(content))
    part = content[start : start + rng.choice((4, 100, 10_000))]
    return content[:place] + part + content[place + rng.choice((0, len(part))) :]


def _blank(content: bytes, rng: random.Random) -> bytes:
    """A part of zeros or ones, as a disk block that was never written."""
    start = rng.randrange(len(content))
    part = content[start : start + rng.choice((4, 512, 4096))]
    return (
        content[:start] + bytes([rng.choice((0, 255))]) * len(part) + content[start + len(part) :]
    )


def _inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.choice((1, 7, 300))) + content[place:]


def _png_chunk(content: bytes, rng: random.Random) -> bytes:
    """A chunk of a PNG changed, with a checksum that is right again."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return content
    number = rng.randrange(len(chunks)) if rng.random() < 0.6 else 0
    kind, data = chunks[number]
    data = rng.choice((_flipped, _sized, _cut, _moved))(data, rng) if data else data
    chunks[number] = (kind, data)
    if rng.random() < 0.2:
        chunks.insert(number, chunks[rng.randrange(len(chunks))])
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
