"""The samples of a set one by one, where damaged ones may be left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dakd.data.ordered_records import OnBadRecord
from dakd.data.records import BadRecord
from dakd.data.sample import Sample
from dakd.data.shards import ShardSet
from dakd.runtime.runlog import say


def good_samples(
    shards: ShardSet, places: Iterable[int], on_bad_record: OnBadRecord | None, out_of: str
) -> Iterator[tuple[int, Sample]]:
    """(place, sample) of the samples at these places, in order.

    A damaged one raises BadRecord, or with "skip" is left out and reported.  on_bad_record: `data.on_bad_record`; None
    where there is no such setting, which an error would name.  out_of: what samples are left out of, such as "refine".
    Raises ValueError at the end where not one of them can be read.
    """
    num_good = num_bad = 0
    for place in places:
        try:
            sample = shards.read(place)
        except BadRecord as error:
            if on_bad_record == "stop":
                raise BadRecord(
                    f"{error}. Fix the shard, or set data.on_bad_record: skip to leave the sample out of {out_of}"
                ) from None
            if on_bad_record is None:
                raise
            say(f"left out of {out_of}: {error}")
            num_bad += 1
        else:
            num_good += 1
            yield place, sample
    if num_bad and not num_good:
        raise ValueError(f"none of {num_bad} samples of {shards.folder} can be read; write the shards again")


def without_damaged(num_made: int, num_wanted: int) -> str:
    """What a message about a set that was made before adds: how many samples it lacks, for they were damaged."""
    lacking = num_wanted - num_made
    return f"; damaged samples left out: {lacking} (remove it once they are repaired)" if lacking else ""
