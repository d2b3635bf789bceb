"""Trials of one kind of fault: how many were survived, and how much was lost, doubled or wrongly accepted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

MOST_PROBLEMS = 20  # kept of one kind of fault


@dataclass
class Findings:
    """Differences from the undisturbed run.

    lost, doubled: samples.  accepted: files under their final names whose bytes are not the undisturbed run's, and
    damaged files that were read without a warning.
    """

    lost: int = 0
    doubled: int = 0
    accepted: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.accepted or self.problems)

    def add(self, other: Findings) -> Findings:
        """Add the other's findings; returns self."""
        self.lost += other.lost
        self.doubled += other.doubled
        self.accepted += other.accepted
        self.problems += other.problems
        return self

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


@dataclass
class Trials:
    """A row of the table: one kind of fault in one kind of work.

    landed: the number of faults by the state of the work.  missed: faults that came after the work had ended; they do
    not count as tried.
    """

    work: str
    fault: str
    tried: int = 0
    survived: int = 0
    total: Findings = field(default_factory=Findings)
    landed: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    seconds: float = 0.0
    _start_s: float = field(default_factory=time.monotonic, repr=False)

    def count(self, state: str, findings: Findings) -> None:
        """Count a fault that landed while the work was in `state`."""
        self.tried += 1
        self.landed[state] = self.landed.get(state, 0) + 1
        self.survived += findings.is_good
        self.note(findings)

    def count_if(self, has_landed: bool, state: str, findings: Findings) -> None:
        """The same where the fault came in time; else a missed one, whose findings count nevertheless."""
        if has_landed:
            self.count(state, findings)
        else:
            self.missed += 1
            self.note(findings)

    def note(self, findings: Findings) -> None:
        """Add findings that belong to no single fault, such as the finished run's."""
        self.seconds = time.monotonic() - self._start_s
        room = max(0, MOST_PROBLEMS - len(self.total.problems))
        self.total.add(Findings(findings.lost, findings.doubled, findings.accepted, findings.problems[:room]))

    @property
    def is_good(self) -> bool:
        return self.tried > 0 and self.survived == self.tried and self.total.is_good
