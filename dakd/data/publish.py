"""Shards that any number of workers may make at once, and that appear exactly once.

A file is written aside, brought to the disk and then linked to its name: link(2) fails where the name is taken, so the
first writer wins, a later one deletes its copy, and nothing that a reader may have open is ever replaced. The tar
appears first, its sidecar after it. A kill between the two leaves a tar that is whole: the next worker derives the
sidecar from it, which is possible because every record carries its provenance and the hash of its members.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dakd.data.index import ShardInfo, describe_shard
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import shard_name, write_tar
from dakd.runtime.files import sync, written_aside

# What file systems answer that know no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def publish(aside: Path, target: Path) -> bool:
    """Give a file that was written aside its name, unless the name is taken; whether it is now this very file.

    Raises RuntimeError where the file system has no hard links.
    """
    # On the disk before it has its name: a power failure must not leave a name without its bytes.
    sync(aside)
    try:
        os.link(aside, target)
    except FileExistsError:
        # A file server that carried out the link and lost its answer is asked again, and says that the name is taken.
        # A second name of our own file can only be the one that we asked for; a client may have kept the old count.
        won = os.stat(aside).st_nlink > 1 or os.path.samefile(aside, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise RuntimeError(
            f"{target.parent} lies on a file system without hard links ({error.strerror}), where two workers could "
            "replace each other's shards; put the run on another one and copy it afterwards"
        ) from error
    else:
        won = True
    # The folder's entry too: the sidecar that follows must never outlive its tar.
    sync(target.parent)
    return won


def publish_text(target: Path, text: str) -> bool:
    """Publish a small file; False where the name is taken already."""
    with written_aside(target) as aside:
        aside.write_text(text)
        return publish(aside, target)


def publish_shard(
    folder: str | Path,
    index: int,
    samples: Iterable[Sample],
    classes: ClassTable,
    *,
    codec: str,
    temperature: float | None = None,
    provenance: dict,
    facts: Callable[[ShardInfo], dict],
) -> bool:
    """Write `shard-INDEX.tar` and its sidecar into `folder`; False where another worker was first.

    samples: their `meta` must hold the provenance, or it could not be found again from the tar.
    temperature: of the student's softmax, for codecs that ask.
    facts: gives further facts for the sidecar; called when the tar is written.
    """
    tar_path = Path(folder) / f"{shard_name(index)}.tar"
    with written_aside(tar_path) as aside:
        write_tar(aside, samples, classes, codec, temperature)
        # Read back and decoded before it is published: a tar that was written badly never gets its name.
        info = describe_shard(aside, classes, file=tar_path.name, provenance=provenance)
        won = publish(aside, tar_path)
    # Only the winner's facts (device, speed) are true of the published tar.
    if won:
        publish_sidecar(tar_path, info.model_copy(update={"facts": facts(info)}))
    return won


def publish_sidecar(tar_path: Path, info: ShardInfo) -> bool:
    """Publish the sidecar of a tar; False where another worker was first."""
    return publish_text(tar_path.with_suffix(".json"), info.to_json())
