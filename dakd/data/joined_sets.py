"""Several sets of shards as one, image by image: what a teacher saw may lie in more than one."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import ShardSet


class JoinedSets:
    """The sets laid end to end, read as a `ShardSet` is: by index.

    classes, folder: of the first set.  Raises ValueError without a set.
    """

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        if not sets:
            raise ValueError(f"{len(sets)} sets to join; give at least one")
        self.sets = list(sets)
        self._ends = list(accumulate(map(len, self.sets)))

    @property
    def classes(self) -> ClassTable:
        return self.sets[0].classes

    @property
    def folder(self) -> str | Path:
        return self.sets[0].folder

    @property
    def fingerprint(self) -> str:
        """That of a single set; a hash over those of several."""
        own = [one.fingerprint for one in self.sets]
        return own[0] if len(own) == 1 else hashlib.sha256("\n".join(own).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, i: int) -> str:
        shards, place = self._locate(i)
        return shards.key(place)

    def size(self, i: int) -> tuple[int, int]:
        shards, place = self._locate(i)
        return shards.size(place)

    def read(self, i: int) -> Sample:
        shards, place = self._locate(i)
        return shards.read(place)

    def _locate(self, i: int) -> tuple[ShardSet, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}; expected 0 to {len(self) - 1}")
        number = bisect.bisect_right(self._ends, i)
        return self.sets[number], i - (self._ends[number - 1] if number else 0)
