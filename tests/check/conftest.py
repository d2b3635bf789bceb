"""What all tests of `dakd check` need."""

from __future__ import annotations

import pytest

from dakd.check import results, trainings
from dakd.runtime.place import PLACE_VARIABLES


@pytest.fixture(autouse=True, scope="module")
def nets_measured_once():
    """The same nets are measured for nearly every test, which takes a second or two."""
    known: dict[str, object] = {}

    def once(measure):
        def measured(*arguments):
            key = f"{measure.__name__} {arguments}"
            known[key] = known[key] if key in known else measure(*arguments)
            return known[key]

        return measured

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (trainings, "cost_of_stage"), (trainings, "cost_of_student"), (results, "cost_of_stage"),
        ):  # fmt: skip
            patch.setattr(module, name, once(getattr(module, name)))
        yield


@pytest.fixture(autouse=True)
def no_place_of_an_earlier_training(monkeypatch):
    """A training in the tests' own process leaves it a rank, and `check` looks at the variables of launchers."""
    for name in PLACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
