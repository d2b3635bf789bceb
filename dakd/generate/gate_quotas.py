"""The gate's quotas: which of the candidates within all bounds make the set, so that it has its shares of each class.

Each candidate is looked at once, in the order of the indices, and the decision depends only on those before it. So the
result is a function of the candidates up to the last kept one: neither further candidates nor the workers that made
them, nor the order in which they were made, can change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dakd.config import ShareBounds

_ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001

SURPLUS = "surplus"  # the set was full before


class Quotas:
    """Takes candidates for a set of `num_samples` images, of which shares within bounds hold each class.

    quotas: by class. A set that becomes full has at least ceil(at_least * num_samples) and at most
    floor(at_most * num_samples) images with the class. Its beginnings keep to the shares as nearly as possible: where
    images of a class are due, candidates without any class that is due are refused.
    Raises ValueError where the least numbers, rounded up, are more than `num_samples` or than the largest ones.
    """

    def __init__(self, quotas: Mapping[str, ShareBounds], num_samples: int) -> None:
        self.num_samples, self.num_kept = num_samples, 0
        self._quotas = quotas
        self._counts = dict.fromkeys(quotas, 0)
        self._wanted = {name: _at_least(quota, num_samples) for name, quota in quotas.items()}
        self._allowed = {name: _at_most(quota, num_samples) for name, quota in quotas.items()}
        if (total := sum(self._wanted.values())) > num_samples:
            raise ValueError(
                f"the quotas want {total} images for a set of {num_samples}; lower generate.gate.quotas or raise "
                "generate.num_samples"
            )
        if empty := [name for name in quotas if self._wanted[name] > self._allowed[name]]:
            raise ValueError(
                f"no number of images among {num_samples} meets the quota of {', '.join(empty)}; widen it in "
                "generate.gate.quotas"
            )

    @property
    def is_full(self) -> bool:
        return self.num_kept == self.num_samples

    def offer(self, held: set[str]) -> list[str]:
        """Keep a candidate that holds these classes, or return the reasons against it; none means that it is kept."""
        if self.is_full:
            return [SURPLUS]
        reasons = self._refuse(held)
        if not reasons:
            self.num_kept += 1
            for name in self._counts.keys() & held:
                self._counts[name] += 1
        return reasons

    def _refuse(self, held: set[str]) -> list[str]:
        full = [name for name in self._quotas if name in held and self._counts[name] >= self._allowed[name]]
        if full:
            return [f"more {name} than its quota" for name in full]
        # Due is a class whose least share the set with one more image would miss.
        due = [
            name
            for name, quota in self._quotas.items()
            if self._counts[name] < math.floor((quota.at_least or 0) * (self.num_kept + 1) + _ROUNDING)
        ]
        if held.intersection(due):
            return []
        missing = [name for name, wanted in self._wanted.items() if self._counts[name] < wanted]
        free = self.num_samples - self.num_kept
        if not due and not held.intersection(missing):
            # No free place may go to another image once each is needed for one that a class still lacks.
            due = missing if free <= sum(self._wanted[name] - self._counts[name] for name in missing) else []
        if due:
            return [f"fewer {name} than its quota" for name in due]
        # Early is a class whose largest share is reached for a set of this size, though not for the full one.
        early = [
            name
            for name, quota in self._quotas.items()
            if name in held and quota.at_most is not None
            and self._counts[name] >= math.ceil(quota.at_most * (self.num_kept + 1) - _ROUNDING)
        ]  # fmt: skip
        return [f"more {name} than its quota" for name in early]


def _at_least(quota: ShareBounds, num_samples: int) -> int:
    return math.ceil((quota.at_least or 0) * num_samples - _ROUNDING)


def _at_most(quota: ShareBounds, num_samples: int) -> int:
    return num_samples if quota.at_most is None else math.floor(quota.at_most * num_samples + _ROUNDING)
