"""A small table, its plan, and a store with finished jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dakd.ablate.plan import TablePlan, make_plan
from dakd.ablate.run import JobStore
from dakd.ablate.spec import TableSpec
from dakd.metrics.scores import score
from dakd.runtime.sealed import write_json

TOY = Path(__file__).parent / "ablate" / "toy.yaml"
TABLE = {
    "title": "Toy",
    "base": str(TOY),
    "seeds": [3, 4],
    "measures": ["miou", "f1"],
    "reference": "real",
    "set": {"train_saross.steps": 5},
    "small": {"train_saross.steps": 1},
    "rows": [
        {"name": "real", "head": {"b": "-"}, "paper": {"miou": 70.0}},
        {"name": "soft", "head": {"b": "x"}, "set": {"balance.b": 0.5}, "training_set": "real+synthetic"},
    ],
}
SOFT = {"name": "soft", "training_set": "real+synthetic"}
CLASSES = ("sea", "oil")


def plan_of(*rows: dict, seeds=(0,), overrides=(), **changes) -> TablePlan:
    """The plan of a table of these rows."""
    tree = TABLE | {"rows": list(rows), "seeds": list(seeds), "reference": None, "set": {}, "small": {}} | changes
    return make_plan(TableSpec.model_validate(tree), Path("/"), False, list(overrides))


def write_scores(
    store: JobStore, plan: TablePlan, row: str, seed: int, counts: np.ndarray, dataset: str = "", repeat: int = 0
) -> None:
    """Write the results of a cell's finished jobs; counts: (N, K, K) of the test images."""
    place = (row, seed, dataset, repeat)
    cell = next(cell for cell in plan.cells if (cell.row.name, cell.seed, cell.dataset, cell.repeat) == place)
    for job in cell.jobs["student"].chain():
        place = store.folder_of(job)
        place.mkdir(parents=True, exist_ok=True)
        record = {"job": job.name, "commit": "abc", "device": "a CPU", "seconds": 10.0}
        write_json(place / "job.json", record)
    folder = store.folder_of(cell.jobs["student"]) / "evaluate"
    folder.mkdir(exist_ok=True)
    name = cell.row.training_set
    write_json(folder / f"{name}.json", score(counts.sum(axis=0), CLASSES).to_dict())
    np.savez(folder / f"{name}.images.npz", counts=counts, keys=np.arange(len(counts)).astype(str))
