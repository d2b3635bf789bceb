"""Damage to good files. hypothesis draws the changes, so that it can shrink a failing one."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# Where length fields, counters and offsets break.
_INTEGERS = (0, 1, 2, 127, 128, 255, 256, 511, 512, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**64 - 1)
_TOKENS = (
    b"\0", b"\xff" * 8, b"\0" * 512, b"\x80\x04", b"\n", b"{", b"}", b"[" * 2000, b"null", b"NaN", b"-1", b"1e999",
    b"0" * 5000, b"\xef\xbb\xbf", b"\xd8\x00", b"../../", b"\x28\xb5\x2f\xfd", b"IDAT", b"ustar  \0", b"|", b"*a",
)  # fmt: skip
_VALUES = (
    None, True, False, 0, 1, -1, 255, 2**31, 2**63, 2**200, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "\0", "\ud800", "../../../etc/passwd", "/etc/passwd", "9" * 400, [], {}, [[]], [0] * 50, [[0, 0]], {"": None},
)  # fmt: skip


@st.composite
def mutated_bytes(draw, original: bytes) -> bytes:
    """One to four changes: bits, integers, slices cut, doubled, swapped or zeroed, tokens put in, the tail cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(data))), draw(st.sampled_from((1, 2, 4, 8, 16, 100, 512, 1024)))
        change = draw(st.integers(0, 8))
        if change == 0 and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == 1 and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif change == 2:
            width, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
            number = draw(st.sampled_from(_INTEGERS)) % 256**width
            data[place : place + width] = number.to_bytes(width, order)
        elif change == 3:
            del data[place : place + length]
        elif change == 4:
            data[place:place] = data[place : place + length]
        elif change == 5:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif change == 6:
            data[place:place] = draw(st.sampled_from(_TOKENS))
        elif change == 7:
            other = draw(st.integers(0, len(data)))
            data[place : place + length], data[other : other + length] = (
                data[other : other + length], data[place : place + length],
            )  # fmt: skip
        else:
            del data[place:]
    return bytes(data)


@st.composite
def mutated_tree(draw, original: Any, values: tuple = ()) -> Any:
    """A JSON or YAML tree with one to three nodes replaced, removed, doubled, added to or moved elsewhere.

    values: what a node is replaced by, besides what is odd anywhere.
    """
    tree = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            return draw(st.sampled_from(_VALUES))
        node, key = draw(st.sampled_from(places))
        change = draw(st.integers(0, 5))
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif change == 2 and isinstance(node, dict):
            node[draw(st.sampled_from(("", "x", f"{key}s", "__class__", "pickle")))] = copy.deepcopy(node[key])
        elif change == 3:
            other, place = draw(st.sampled_from(places))
            node[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else place)
        elif change == 4 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            number = node[key]
            node[key] = draw(st.sampled_from((-number, number + 1, number * 1000, str(number), [number])))
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from((*_VALUES, *values))))
    return tree


def _places(tree: Any):
    """(container, key) of every node below the root."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield tree, key
        yield from _places(value)


class Executed:
    """What a pickle may hold: it runs a command where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def planted_pickle(marker: Path) -> bytes:
    return pickle.dumps({"weight": Executed(marker)})


@st.composite
def tar_with_a_planted_member(draw, original: bytes, marker: Path) -> bytes:
    """The tar with one more member, somewhere: a pickle, a link, a device, a way out of the folder, a lying header."""
    kind = draw(st.sampled_from(("pickle", "link", "hard link", "device", "pipe", "way out", "sparse", "lie", "pax")))
    key = draw(st.sampled_from(("a", "pair-0", "zz", "folder/zz", "../../zz", "/zz", "")))
    endings = (".pkl", ".pickle", ".pyd", ".pth", ".json", ".sar.u8", ".soft.pkl", ".soft.fp16", "")
    ending = draw(st.sampled_from(endings))
    entry, content = tarfile.TarInfo(key + ending), planted_pickle(marker)
    if kind in ("link", "hard link"):
        entry.type, content = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE, b""
        entry.linkname = draw(st.sampled_from(("/etc/passwd", "../../etc/passwd", "a.json", key + ending)))
    elif kind in ("device", "pipe"):
        entry.type, content = tarfile.CHRTYPE if kind == "device" else tarfile.FIFOTYPE, b""
    elif kind == "way out":
        entry.name = draw(st.sampled_from((f"../{marker.name}.json", f"{marker}.json", "a/../../b.json", "a\0b.json")))
    elif kind == "sparse":
        entry.type = tarfile.GNUTYPE_SPARSE
    elif kind == "pax":
        name = draw(st.sampled_from(("size", "path", "mtime", "GNU.sparse.realsize", "hdrcharset", "linkpath")))
        entry.pax_headers = {name: draw(st.sampled_from(("-1", "99999999999", "nan", "", "/etc/passwd", "x" * 3000)))}
    entry.size = len(content)
    header = bytearray(entry.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape"))
    if kind == "lie":
        sizes = (b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0")
        header[124:136] = draw(st.sampled_from(sizes))
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    member = bytes(header) + content + bytes(-len(content) % 512)
    with tarfile.open(fileobj=io.BytesIO(original)) as tar:
        starts = [entry.offset for entry in tar]
    place = draw(st.sampled_from([*starts, tar.offset]))
    return original[:place] + member + original[place:]


@st.composite
def safetensors_with_a_lying_header(draw, original: bytes) -> bytes:
    """A changed header with its length put right, so that what it says is looked at."""
    (length,) = struct.unpack_from("<Q", original)
    header = draw(mutated_tree(json.loads(original[8 : 8 + length]), values=("F64", "I8", [0, 2**60], [-4, 4])))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + original[8 + length :]


_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_DOUBLES = (0.0, -1.0, 1e-300, 1e7, 1e300, -1e300, float("nan"), float("inf"), 500_000.0, 91.0)
_TIFF_TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 33550, 33922,
              34264, 34735, 34736, 34737, 42112, 42113)  # fmt: skip


@st.composite
def tiff_with_a_lying_header(draw, original: bytes) -> bytes:
    """One to three changed entries of a little-endian TIFF's directories: tag, type, count, value, or what it leads to.
    """
    data, entries = bytearray(original), []
    (directory,) = struct.unpack_from("<I", data, 4)
    while directory:
        (count,) = struct.unpack_from("<H", data, directory)
        entries += [directory + 2 + 12 * i for i in range(count)]
        (directory,) = struct.unpack_from("<I", data, directory + 2 + 12 * count)
    integers = st.sampled_from((*_INTEGERS, 3, 4, 7, 16, 100_000)).map(lambda number: number % 2**32)
    for _ in range(draw(st.integers(1, 3))):
        entry, change = draw(st.sampled_from(entries)), draw(st.integers(0, 7))
        tag, kind, count, value = struct.unpack_from("<HHII", data, entry)
        size = _TIFF_BYTES.get(kind, 1)
        if change == 0:
            tag = draw(st.sampled_from(_TIFF_TAGS))
        elif change == 1:
            kind = draw(st.integers(0, 19))
        elif change == 2:
            count = draw(integers)
        elif change == 3 and kind == 3 and count == 1:
            value = draw(integers) % 2**16
        elif change <= 4 or size * count <= 4 or value + size * count > len(data):
            value = draw(integers)
        else:
            place = value + size * draw(st.integers(0, count - 1))
            new = struct.pack("<d", draw(st.sampled_from(_DOUBLES))) if size == 8 else struct.pack("<I", draw(integers))
            data[place : place + size] = new[:size]
        struct.pack_into("<HHII", data, entry, tag, kind, count, value)
    return bytes(data)
