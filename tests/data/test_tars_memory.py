"""No tar makes its reader take more memory than a small share of what its headers claim.

They are read in a process whose memory is limited to 256 MiB over what it takes after its imports. Files of many GB
are made with gaps, which take no disk.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import textwrap

import pytest

GIB = 1 << 30
CODE = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from dakd.data.pipes import _read_stream
    from dakd.data.tars import list_members

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + (256 << 20)
    list(_read_stream("file:/dev/null"))  # imports
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in map(Path, sys.argv[1:]):
        try:
            walked = f"found {len(list_members(path))}" if path.suffix == ".tar" else "compressed"
        except ValueError as error:
            walked = f"refused {error}"
        print(path.stem, "|", walked[:400], "|", [str(one)[:400] for one in _read_stream(f"file:{path}")])
""")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse_1_0(num_bytes: int) -> bytes:
    """A member of the newest sparse format, whose map claims to be endless."""
    info = tarfile.TarInfo("a.png")
    info.size = num_bytes
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9",
                        "GNU.sparse.name": "a.png"}  # fmt: skip
    return info.tobuf(tarfile.PAX_FORMAT) + b"99999999999\n"


def old_sparse(num_blocks: int) -> bytes:
    """A member of the old sparse format, whose map goes on in block after block."""
    block = bytearray(header("a.png", 512, tarfile.GNUTYPE_SPARSE))
    block[482] = 1  # is extended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    further = bytearray(512)
    further[504] = 1
    return bytes(block) + bytes(further) * num_blocks


def attributes(number: int) -> bytes:
    """A member behind 60 KB of attributes for all that follow, other ones each time."""
    text = b"".join(f"30 u{number:08}.{key:06}=aaaaaaaaa\n".encode()[-30:] for key in range(2000))
    padded = text + bytes(-len(text) % 512)
    return header("g", len(text), tarfile.XGLTYPE) + padded + header(f"k{number}.png", 0)


HOSTILE = {
    "a long name": (header("././@LongLink", 6 * GIB, tarfile.GNUTYPE_LONGNAME), 6 * GIB),
    "a long link": (header("././@LongLink", 6 * GIB, tarfile.GNUTYPE_LONGLINK), 6 * GIB),
    "attributes": (header("pax", 6 * GIB, tarfile.XHDTYPE), 6 * GIB),
    "attributes of all": (header("pax", 6 * GIB, tarfile.XGLTYPE), 6 * GIB),
    "attributes of Solaris": (header("pax", 6 * GIB, tarfile.SOLARIS_XHDTYPE), 6 * GIB),
    "a sparse map": (sparse_1_0(6 * GIB), 6 * GIB),
    "an old sparse map": (old_sparse(20_000), 0),
    "a chain of names": ((header("././@LongLink", 512, tarfile.GNUTYPE_LONGNAME) + b"a" * 512) * 20_000, 0),
    "an absurd size": (header("a.png", 1 << 60), 6 * GIB),
}


def write(path, start: bytes, gap: int) -> None:
    with open(path, "wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + gap)


def test_tars_with_claims_beyond_measure_are_refused_within_little_memory(tmp_path):
    for name, (start, gap) in HOSTILE.items():
        write(tmp_path / f"{name}.tar", start, gap)
    write(tmp_path / "much.tar", b"".join(map(attributes, range(30))), 1024)
    write(tmp_path / "big.tar", header("a.png", 6 * GIB), 6 * GIB + 1024)
    for name, start in {"bomb name": HOSTILE["a long name"][0], "bomb": header("a.png", 6 * GIB)}.items():
        with gzip.open(tmp_path / f"{name}.gz", "wb", compresslevel=1) as stream:
            stream.write(start + bytes(1 << 26))
    paths = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", CODE, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {name: rest for name, *rest in (line.split(" | ") for line in done.stdout.splitlines())}
    assert len(lines) == len(paths) and "MemoryError" not in done.stdout, done.stdout
    for name in HOSTILE:
        walked, streamed = lines[name]
        assert walked.startswith("refused") and f"{name}.tar" in walked and "breaks off" in streamed, lines[name]
    # A large member is located without being read.
    assert lines["big"][0] == "found 1" and lines["much"][0] == "found 30"
    assert "record 'a' has 6442450944 bytes or more; expected at most 1073741824: cut the image" in lines["big"][1]
    assert "record 'a' has 6442450944 bytes" in lines["bomb"][1]
    assert "a name or attribute has 6442450944 bytes; expected at most 65536" in lines["bomb name"][1]


def test_a_tar_of_more_members_than_are_kept_in_memory_is_to_be_split(tmp_path, monkeypatch):
    from dakd.data import tars

    monkeypatch.setattr(tars, "_MAX_MEMBERS", 3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(4):
            tar.addfile(tarfile.TarInfo(f"{number}.png"), io.BytesIO())
    with pytest.raises(tars.DamagedTar, match="has more than 3 members; split it into several tars"):
        tars.list_members(tmp_path / "a.tar")
