"""The second pass of the gate: which of the sound candidates make the set, so that it fulfils its quotas.

One look at each candidate in the order of their numbers. What is decided of one depends on those before it alone, so
that candidates beyond the last kept one change nothing, whoever made them and however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dakd.config import ShareBounds

_ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001

SURPLUS = "surplus"  # the set was full before


class Quotas:
    """Takes candidates for a set of `num_samples` images, of which bounded shares shall hold each class.

    quotas: by class. A set that becomes full has at least ceil(at_least * num_samples) and at most
    floor(at_most * num_samples) images with the class. Its beginnings keep to the shares as near as may be: where a
    class is due, candidates without any class that is due have to wait.
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
        """Keep a candidate that holds these classes, or say why not; an empty list means that it is kept."""
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
            # Every place that is left is spoken for: one for each image that a class still lacks.
            due = missing if free <= sum(self._wanted[name] - self._counts[name] for name in missing) else []
        if due:
            return [f"fewer {name} than its quota" for name in due]
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
