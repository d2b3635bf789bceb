"""What came of faults: how many landed, how many were survived, and what was lost, doubled or wrongly accepted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

MOST_PROBLEMS = 20  # that a row keeps; the first ones tell


@dataclass
class Outcome:
    """What a comparison with the undisturbed run found.

    lost, doubled: samples.  accepted: files that stand under their final names though their bytes are not those of the
    undisturbed run, and damaged ones that were read without a word.
    """

    lost: int = 0
    doubled: int = 0
    accepted: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.accepted or self.problems)

    def add(self, other: Outcome) -> Outcome:
        """This one, with the other's findings added."""
        self.lost += other.lost
        self.doubled += other.doubled
        self.accepted += other.accepted
        self.problems += other.problems
        return self

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


@dataclass
class Tally:
    """A row of the table: one kind of fault, in one kind of work.

    landed: how many faults found the work in which state.  missed: faults that came when the work was over; these are
    not among those that were tried.
    """

    work: str
    fault: str
    tried: int = 0
    survived: int = 0
    total: Outcome = field(default_factory=Outcome)
    landed: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    seconds: float = 0.0
    _start_s: float = field(default_factory=time.monotonic, repr=False)

    def count(self, state: str, outcome: Outcome) -> None:
        """A fault that landed while the work was in `state`."""
        self.tried += 1
        self.landed[state] = self.landed.get(state, 0) + 1
        self.survived += outcome.is_good
        self.note(outcome)

    def note(self, outcome: Outcome) -> None:
        """What a comparison found that belongs to no single fault, such as that of the finished run."""
        self.seconds = time.monotonic() - self._start_s
        room = max(0, MOST_PROBLEMS - len(self.total.problems))
        self.total.add(Outcome(outcome.lost, outcome.doubled, outcome.accepted, outcome.problems[:room]))

    @property
    def is_good(self) -> bool:
        return self.tried > 0 and self.survived == self.tried and self.total.is_good
