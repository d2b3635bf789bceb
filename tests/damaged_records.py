"""Records that no longer are what was written."""

from __future__ import annotations

from dakd.data.shards import ShardSet


def flip_byte(shards: ShardSet, i: int, extension: str = "sar.u8") -> str:
    """Change one byte of sample i; returns its key."""
    shard, record = shards.locate(i)
    span = shards.span(shard, record)
    start = next(start for name, start, _ in span.members if name == extension)
    path = shards.folder / shards.index.shards[shard].file
    content = bytearray(path.read_bytes())
    content[span.first + start + 3] ^= 1
    path.write_bytes(content)
    return span.key
