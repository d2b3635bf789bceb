"""Advisory claims: a worker claims the shard that it is making, so that others make another one first.

Correctness does not rest on claims: a shard that two workers make is published once. A claim is a small file that names
its owner and grows by one byte with every sign of progress. Hosts' clocks may disagree, so no time is read from it:
a claim is stale when its owner is a dead process of this host, or when the file has not changed for `patience_s` of
this worker's own monotonic clock.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from dakd.data.publish import publish
from dakd.runtime.files import is_alive, open_to_append, written_aside


class Claims:
    """The claims of one set, as one worker sees them."""

    def __init__(self, folder: Path, patience_s: float) -> None:
        self.folder, self.patience_s = folder / "claims", patience_s
        self._owner = f"{socket.gethostname()} {os.getpid()}\n".encode()
        self._seen: dict[int, tuple[bytes, float]] = {}  # by shard: the file's content, and since when it is that
        self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, shard: int) -> bool:
        """Claim a shard; False where another worker is making it."""
        path = self._path(shard)
        is_claimed = path.exists()
        if is_claimed and not self.is_stale(shard):
            return False
        # The owner is written before the claim gets its name: a kill or a full disk in between would leave a claim
        # without an owner, which would hold others up for `patience_s`.
        with written_aside(self.folder.parent / f"claim-{path.name}") as aside:
            aside.write_bytes(self._owner)
            if not is_claimed:
                return publish(aside, path)  # a link: of two workers that arrive at once, one gets the claim
            # Two workers may both replace a stale claim. Then both make the shard, and the first one publishes it.
            os.replace(aside, path)
        return True

    def beat(self, shard: int) -> None:
        """Show that the shard makes progress."""
        # A file that grows shows progress without any clock.
        with open_to_append(self._path(shard)) as stream:
            stream.write(".")

    def release(self, shard: int) -> None:
        self._path(shard).unlink(missing_ok=True)

    def owner(self, shard: int) -> str:
        """Who has claimed a shard: `process PID on HOST`."""
        host, _, pid = _read(self._path(shard)).split(b"\n")[0].decode(errors="replace").partition(" ")
        return f"process {pid} on {host}" if pid else "an unknown process"

    def is_stale(self, shard: int) -> bool:
        """Whether nobody is making a shard, as far as this worker knows from what it has seen so far."""
        try:
            content = self._path(shard).read_bytes()
        except FileNotFoundError:
            return True
        if _is_dead(content):
            return True
        now = time.monotonic()
        # Patience begins when this worker first sees the content.
        before, since = self._seen.setdefault(shard, (content, now))
        if before != content:
            self._seen[shard] = (content, now)
            return False
        return now - since >= self.patience_s

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}"


def living_claims(folder: Path) -> list[int]:
    """The shards that are claimed, except by dead processes of this host."""
    return [int(path.name) for path in _claims_in(folder) if not _is_dead(_read(path))]


def clear_dead_claims(folder: Path) -> int:
    """Remove the claims of this host's dead processes; their number."""
    dead = [path for path in _claims_in(folder) if _is_dead(_read(path))]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)


def _claims_in(folder: Path) -> list[Path]:
    """The files whose names are shards' numbers: other files there, such as copies, are not claims."""
    return [path for path in sorted((folder / "claims").glob("[0-9]*")) if path.name.isdecimal()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _is_dead(claim: bytes) -> bool:
    """Whether a claim's owner is a process of this host that has ended; False where that cannot be known here."""
    host, _, pid = claim.split(b"\n")[0].decode(errors="replace").partition(" ")
    # A process id means something only on its own host.
    return host == socket.gethostname() and pid.isdecimal() and not is_alive(int(pid))
