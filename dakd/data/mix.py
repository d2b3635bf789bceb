"""Which positions of a student's training hold real samples and which synthetic ones, as a function of the position.

A mix gives each sample its number among those of its own kind. Each set thus goes round at its own pace, and a resumed
training needs nothing but its position.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from dakd.config import check_mix
from dakd.data.order import MIX_BLOCK, interleave
from dakd.runtime.seeding import Stream, numpy_rng


class Mix(ABC):
    """The kinds of the samples of one training."""

    @abstractmethod
    def at(self, position: int) -> tuple[bool, int]:
        """(whether the sample there is synthetic, how many of its kind come before it)."""

    def synthetic_before(self, position: int) -> int:
        """How many of the first `position` samples are synthetic."""
        is_synthetic, number = self.at(position)
        return number if is_synthetic else position - number


@dataclass(frozen=True)
class EvenMix(Mix):
    """Epochs of all real samples and a constant number of synthetic ones (see `order.interleave`)."""

    num_real: int
    num_synthetic: int  # in an epoch
    seed: int

    def at(self, position: int) -> tuple[bool, int]:
        epoch, place = divmod(position, self.num_real + self.num_synthetic)
        is_synthetic, number = interleave(self.num_real, self.num_synthetic, self.seed, epoch, place)
        return is_synthetic, epoch * (self.num_synthetic if is_synthetic else self.num_real) + number


@dataclass(frozen=True)
class LinearMix(Mix):
    """A share of synthetic samples that goes from `first` to `last` over `num_positions`, and then stays.

    Each block of 64 positions has its share of the schedule, to within one sample, in random order; the last block of
    the training ends with it, so that the training as a whole has its share too.
    """

    first: Fraction
    last: Fraction
    num_positions: int
    seed: int

    def at(self, position: int) -> tuple[bool, int]:
        start, stop = self._block_around(position)
        before, inside = self._scheduled(start), position - start
        kinds = _shuffled(self._scheduled(stop) - before, stop - start, self.seed, start)
        synthetic = before + int(np.count_nonzero(kinds[:inside]))
        return bool(kinds[inside]), synthetic if kinds[inside] else position - synthetic

    def _block_around(self, position: int) -> tuple[int, int]:
        """Readers look beyond the end of the training, where blocks are counted from it."""
        origin = self.num_positions if position >= self.num_positions else 0
        start = position - (position - origin) % MIX_BLOCK
        return start, start + MIX_BLOCK if origin else min(start + MIX_BLOCK, self.num_positions)

    def _scheduled(self, position: int) -> int:
        """The integral of the share up to a position, rounded down; in fractions, so that no host rounds otherwise."""
        inside = min(position, self.num_positions)
        rise = (self.last - self.first) * Fraction(inside * inside, 2 * self.num_positions)
        return math.floor(self.first * inside + rise + self.last * (position - inside))


@dataclass(frozen=True)
class SyntheticFirst(Mix):
    """`num_synthetic` synthetic samples, and then only real ones."""

    num_synthetic: int

    def at(self, position: int) -> tuple[bool, int]:
        is_synthetic = position < self.num_synthetic
        return is_synthetic, position if is_synthetic else position - self.num_synthetic


@lru_cache(maxsize=16)
def _shuffled(num_synthetic: int, length: int, seed: int, start: int) -> np.ndarray:
    """(length,) bool, `num_synthetic` of which are true.  start: the position of the first."""
    return numpy_rng(seed, start, stream=Stream.MIX).permutation(np.arange(length) < num_synthetic)


@dataclass(frozen=True)
class MixSettings:
    """What a mix is made from, but the length of the training.

    num_real, num_synthetic: samples, and items of synthetic ones (mosaics or pairs), of each set.
    schedule, share: `train_saross.schedule` and `synthetic_share`; they have no effect where one set is empty.
    Raises ValueError for a share out of range or one that the schedule does not have.
    """

    num_real: int
    num_synthetic: int
    schedule: str
    share: float | tuple[float, float] | None
    seed: int

    def __post_init__(self) -> None:
        check_mix(self.schedule, self.share)
        is_number = self.share is not None and not isinstance(self.share, tuple)
        if self.has_both and is_number and not 0 < self.share < 1:
            raise ValueError(
                f"synthetic_share is {self.share}; expected a number between 0 and 1, or none for every pair once"
            )

    @property
    def has_both(self) -> bool:
        return self.num_real > 0 and self.num_synthetic > 0

    @property
    def follows_length(self) -> bool:
        """Whether the kind of a sample depends on the length of the training."""
        return self.has_both and (self.schedule != "mixed" or isinstance(self.share, tuple))

    @property
    def synthetic_per_epoch(self) -> int:
        """Synthetic items beside every real sample once; of a share that changes, as many as of its mean."""
        if self.share is None or not self.has_both:
            return self.num_synthetic
        share = sum(self.share) / 2 if isinstance(self.share, tuple) else self.share
        return max(1, round(self.num_real * share / (1 - share)))

    @property
    def epoch_length(self) -> int:
        return self.num_real + self.synthetic_per_epoch

    def over(self, num_positions: int) -> Mix:
        """The mix of a training of so many samples."""
        if not self.follows_length:
            return EvenMix(self.num_real, self.synthetic_per_epoch, self.seed)
        if self.schedule == "mixed":
            return LinearMix(*map(_exact, self.share), num_positions, self.seed)
        share = Fraction(self.num_synthetic, self.epoch_length) if self.share is None else _exact(self.share)
        return SyntheticFirst(round(share * num_positions))

    def steps_of_real_views(self, steps: int, global_batch: int) -> int:
        """The fewest steps that draw at least `steps * global_batch` real samples; `steps` where one set is empty."""
        if not self.has_both:
            return steps

        def is_enough(number: int) -> bool:
            length = number * global_batch
            return length - self.over(length).synthetic_before(length) >= steps * global_batch

        most = steps
        while not is_enough(most):
            most *= 2
        return bisect.bisect_left(range(most + 1), True, lo=steps, key=is_enough)


def _exact(share: float) -> Fraction:
    """The decimal number as it is written: 0.1 is 1/10."""
    return Fraction(str(share))
