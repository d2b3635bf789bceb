"""The settings of the sampler that are compared: solver, spacing and number of steps, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CALLS = (4, 6, 8, 10, 12, 16, 20, 25, 32, 50)
REFERENCE_STEPS = 200  # the paper's
# Heun's method and 2M overshoot on the leading grid; Heun's has its place beside 2M, at equal calls.
FAMILIES = (
    ("ddim", "leading"),
    ("ddim", "trailing"),
    ("ddim", "logsnr"),
    ("dpmpp_2m", "trailing"),
    ("dpmpp_2m", "logsnr"),
    ("heun", "logsnr"),
)


class Setting(NamedTuple):
    """One way to sample; the names and values are those of the section `generate`."""

    solver: str
    spacing: str
    sampling_steps: int

    @property
    def num_calls(self) -> int:
        """Of the net, for each pair: one a step, and with heun two in each step but the first and the last."""
        return max(1, 2 * self.sampling_steps - 2) if self.solver == "heun" else self.sampling_steps

    @property
    def family(self) -> str:
        return f"{self.solver}, {self.spacing}"

    @property
    def overrides(self) -> str:
        return " ".join(f"generate.{name}={value}" for name, value in self._asdict().items())

    def __str__(self) -> str:
        steps = f"{self.sampling_steps} step{'s' * (self.sampling_steps != 1)}"
        return f"{self.family}, {steps}" + (f" ({self.num_calls} calls)" if self.solver == "heun" else "")


def reference_of(steps: int) -> Setting:
    """The paper's sampler."""
    return Setting("ddim", "leading", steps)


def fine_of(steps: int) -> Setting:
    """The solution that shows how far the reference itself is from converged.

    With 200 steps it was RMS 0.001 from DDIM through all 1,000 timesteps (four pairs of the demo's teacher). Like that
    it begins at T - 1; most of the reference's distance, 0.029, comes from its own begin at 995.
    """
    return Setting("dpmpp_2m", "trailing", steps)


def candidates(calls: Iterable[int]) -> list[Setting]:
    """Each family at each number of calls, the cheapest first; heun at the next smaller even number."""
    found = (_with_calls(*family, number) for number in sorted(set(calls)) for family in FAMILIES)
    return list(dict.fromkeys(found))


def _with_calls(solver: str, spacing: str, number: int) -> Setting:
    return Setting(solver, spacing, number // 2 + 1 if solver == "heun" else number)
