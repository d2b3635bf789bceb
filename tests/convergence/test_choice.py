"""The candidates, and the choice of the cheapest within tolerance on made-up tables."""

from __future__ import annotations

import pytest

from dakd.config import ScheduleConfig
from dakd.convergence.choice import Bound, Tolerances, beyond, bounds_of, cheapest, is_within, nearest
from dakd.convergence.settings import CALLS, Setting, candidates
from dakd.diffusion.schedule import CosineSchedule
from dakd.diffusion.solvers import solver_steps

TOLERANCES = Tolerances(agreement=0.99, rms=0.05)


def row(name: str, calls: int, rms: float = 0.01, agreement: float = 1.0, beyond: tuple[str, ...] = ()) -> dict:
    return {"name": name, "calls": calls, "rms": rms, "agreement": agreement, "beyond": list(beyond)}


def measure(yardstick: float | None, high: float | None, num_images: tuple[int, int] = (9, 9)) -> dict:
    return {"title": "a", "unit": "dB", "yardstick": yardstick, "high": high, "num_images": list(num_images)}


def test_every_candidate_calls_the_net_as_often_as_it_says():
    schedule = CosineSchedule(**ScheduleConfig().model_dump())
    found = candidates(CALLS)
    assert len(found) == 60 and len(set(found)) == 60
    for one in found:
        steps = solver_steps(schedule, one.sampling_steps, one.solver, one.spacing)
        assert len(steps.timesteps) == one.num_calls
    assert [one.num_calls for one in candidates([9, 10]) if one.solver == "heun"] == [8, 10]
    assert [one.num_calls for one in candidates([8, 9]) if one.solver == "heun"] == [8], "9 calls would be 8 again"


def test_the_cheapest_setting_within_tolerance_is_chosen_and_a_tie_goes_to_the_smaller_rms():
    rows = [
        row("off by rms", 4, rms=0.051),
        row("off by labels", 4, agreement=0.989),
        row("off by physics", 4, beyond=("looks",)),
        row("farther", 8, rms=0.05, agreement=0.99),
        row("nearer", 8, rms=0.04, agreement=0.99),
        row("dearer", 10, rms=0.001),
    ]
    assert [is_within(one, TOLERANCES) for one in rows] == [False, False, False, True, True, True]
    assert cheapest(rows, TOLERANCES)["name"] == "nearer"
    assert cheapest(rows[:3], TOLERANCES) is None
    assert nearest(rows[:3])["name"] == "off by labels"


def test_chance_is_the_yardstick_of_the_halves_or_the_upper_end_of_the_interval_to_real_images():
    physics = {"measures": {"looks": measure(0.5, 2.0)}}
    assert bounds_of(physics, has_real=False)["looks"] == Bound("a", "dB", 0.5, 9)
    assert bounds_of(physics, has_real=True)["looks"].largest == 2.0


def test_a_measure_that_too_few_pairs_have_is_not_judged():
    """num_images: of the first and the second set; without real images the reference's pairs are the first."""
    physics = {"measures": {"ship": measure(0.5, 2.0, (4, 3)), "sea": measure(None, None)}}
    assert {key: one.largest for key, one in bounds_of(physics, False).items()} == {"ship": 0.5, "sea": None}
    assert {key: one.largest for key, one in bounds_of(physics, True).items()} == {"ship": None, "sea": None}


def test_a_distance_at_its_bound_is_chance_and_one_that_cannot_be_measured_is_not():
    bounds = {name: Bound(name, "", 1.0, 9) for name in ("at", "above", "absent")} | {"left": Bound("", "", None, 1)}
    assert beyond({"at": 1.0, "above": 1.01, "absent": None, "left": 99.0}, bounds) == ["above", "absent"]


@pytest.mark.parametrize("agreement, rms, message", [
    (99.0, None, "--agreement is 99; expected a share"), (-0.1, None, "--agreement is -0.1"),
    (float("nan"), None, "--agreement is nan"), (None, -1.0, "--rms is -1; expected at least 0"),
    (None, float("nan"), "--rms is nan"),
])  # fmt: skip
def test_tolerances_that_mean_nothing_are_refused(agreement, rms, message):
    with pytest.raises(ValueError, match=message):
        Tolerances.of(agreement, rms)


def test_a_setting_says_its_overrides():
    assert Setting("heun", "logsnr", 4).overrides == (
        "generate.solver=heun generate.spacing=logsnr generate.sampling_steps=4"
    )
    assert str(Setting("heun", "logsnr", 4)) == "heun, logsnr, 4 steps (6 calls)"
