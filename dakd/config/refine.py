"""The settings of `refine`: pairs that a student of real images has looked through."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from dakd.config.base import Positive, Section


class RefineConfig(Section):
    """Pairs as a student of real images finds them: pixels that are too hard are ignored, hard pairs come more often.

    After FreeMask (Yang et al. 2023). With either setting students are trained on RUN/refine.
    """

    pixel_gate: Annotated[float, Field(gt=0)] | None = None
    """Largest loss of a pixel, as a multiple of the mean loss of its class over all pairs; pixels above it count in no
    loss (FreeMask: 1.25). null ignores none."""

    repeats: Positive = 1
    """How often the hardest pair is written: the pair of rank r of n, the easiest first, ceil(repeats r / n) times."""

    @property
    def is_set(self) -> bool:
        """Whether pairs are refined at all."""
        return self.pixel_gate is not None or self.repeats > 1

    def copies(self, rank: int, num_pairs: int) -> int:
        """How often the pair of a rank, from 1 for the easiest to `num_pairs`, is written."""
        return -(-self.repeats * rank // num_pairs)

    def num_written(self, num_pairs: int) -> int:
        """The records of the refined set of so many pairs: the sum of `copies` over the ranks, in closed form.

        A run may have 10^12 pairs, and `dakd check` counts them.
        """
        return (self.repeats * (num_pairs + 1) + num_pairs - math.gcd(self.repeats, num_pairs)) // 2
