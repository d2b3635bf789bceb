"""The gate: which candidates a set keeps.

Shards hold all candidates. Beside a shard stands a file with the measures of its samples, made once by whoever comes
first: a function of the shard and of what is measured, not of the bounds, so that other bounds choose anew in seconds.
What is kept follows from the measures in the order of the samples: first the bounds of each sample, then the quotas of
the set. Where too few are kept, all workers find the same number of further shards to be made.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dakd.config import Bounds, Config, GateConfig
from dakd.data.publish import publish_text
from dakd.data.records import check_digest, decode_record, read_members
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import shard_name
from dakd.generate.measures import Student, held_classes, measure, measuring_settings
from dakd.generate.plan import Plan, sample_key
from dakd.generate.quotas import Quotas
from dakd.generate.sidecar import checked_sidecar
from dakd.runtime import distributed

_FORMAT = 1
# A round makes at least so much more than there is, that there are few of them however rare a class is.
_LEAST_GROWTH = 1 / 8


@dataclass(frozen=True)
class Selection:
    """What a set keeps of its candidates.

    places: of the kept samples in each shard, by the shard's file.  refused: how many candidates, by their reasons.
    """

    places: dict[str, list[int]]
    num_kept: int
    num_candidates: int
    refused: dict[str, int]


class Gate:
    """Measures the shards of a set, and judges by the measures.

    Raises ValueError where the settings name a class that the table does not have.
    """

    def __init__(self, cfg: GateConfig, classes: ClassTable) -> None:
        self.cfg, self.classes = cfg, classes
        for name in [*cfg.areas, *cfg.quotas, *([cfg.enl_class] if cfg.enl.is_set else [])]:
            classes.id_of(name)
        measuring = measuring_settings(cfg)
        self.student_hash = measuring["student"]
        self._hash = hashlib.sha256(json.dumps(measuring, sort_keys=True).encode()).hexdigest()
        self._student: Student | None = None

    def path(self, plan: Plan, shard: int) -> Path:
        """The file with the measures of a shard's samples; other measures lie in another folder."""
        return plan.folder / "measures" / self._hash[:16] / f"{shard_name(shard)}.json"

    def is_measured(self, plan: Plan, shard: int) -> bool:
        return self.path(plan, shard).exists()

    def measure(self, plan: Plan, shard: int, before_each: Callable[[], None] = lambda: None) -> bool:
        """Measure a shard that is there; False where another worker was first.

        before_each: called at each sample.  Raises one of sidecar.UNSOUND where the shard is not sound.
        """
        if self.cfg.student is not None and self._student is None:
            self._student = Student(self.cfg.student, self.classes, distributed.device())
        info, samples = checked_sidecar(plan, shard), []
        for sample in _read_samples(plan.tar(shard), info.records):
            before_each()
            samples.append(measure(sample, self.classes, self.cfg, self._student))
        content = {"format": _FORMAT, "shard": info.sha256, "measuring": self._hash, "samples": samples}
        return publish_text(self.path(plan, shard), json.dumps(content | {"sha256": _digest(content)}) + "\n")

    def read(self, plan: Plan, shard: int) -> list[dict]:
        """The measures of a shard's samples; ValueError where the file is damaged or of another shard."""
        path = self.path(plan, shard)
        try:
            content = json.loads(path.read_text())
            wanted = content.pop("sha256")
            samples = content["samples"]
            is_whole = _digest(content) == wanted and content["format"] == _FORMAT
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); run the same with --repair") from None
        if not is_whole:
            raise ValueError(f"{path} is damaged (its bytes have changed); run the same with --repair")
        if content["measuring"] != self._hash or content["shard"] != checked_sidecar(plan, shard).sha256:
            raise ValueError(f"{path} measures another {plan.tar(shard).name}; run the same with --repair")
        return samples

    def refuse(self, measures: dict) -> list[str]:
        """Why a sample is not fit for any set; an empty list where it is."""
        cfg, pixels = self.cfg, measures["class_pixels"]
        bounded: list[tuple[str, float | None, Bounds]] = [
            ("entropy", measures["entropy"], cfg.entropy),
            ("agreement", measures["agreement"], cfg.agreement),
            ("ENL", measures["enl"], cfg.enl),
            *(
                (f"area of {name}", pixels[self.classes.id_of(name)] / sum(pixels), bounds)
                for name, bounds in cfg.areas.items()
            ),
        ]
        return [name for name, value, bounds in bounded if value is not None and not bounds.low <= value <= bounds.high]

    def held_by(self, measures: dict) -> set[str]:
        """The names of the classes that a sample holds."""
        return {self.classes.names[number] for number in held_classes(measures["class_pixels"], self.cfg)}

    @property
    def facts(self) -> dict:
        """What the kept samples depend on, beside the candidates."""
        return self.cfg.model_dump(mode="json", exclude={"enabled", "max_candidates", "student"}) | {
            "student": self.student_hash
        }


def open_gate(config: Config, classes: ClassTable) -> Gate | None:
    """The gate of a run; None where it is off."""
    return Gate(config.generate.gate, classes) if config.generate.gate.enabled else None


def judge(plan: Plan) -> Iterator[tuple[int, int, dict]]:
    """(shard, place within it, verdict) of the candidates in order, up to the shard in which the set is full.

    A verdict is the sample's key, whether it is kept, the reasons where it is not, and its measures.
    """
    quotas = Quotas(plan.gate.cfg.quotas, plan.num_samples)
    for shard in range(plan.num_shards):
        for place, measures in enumerate(plan.gate.read(plan, shard)):
            reasons = plan.gate.refuse(measures) or quotas.offer(plan.gate.held_by(measures))
            key = sample_key(plan.indices(shard)[place])
            yield shard, place, {"key": key, "kept": not reasons, "reasons": reasons, **measures}
        if quotas.is_full:
            return


def select(plan: Plan) -> Selection:
    """What is kept of the shards that the plan has so far, all of which are measured."""
    places: dict[str, list[int]] = {}
    refused: Counter[str] = Counter()
    num_candidates = 0
    for shard, place, verdict in judge(plan):
        kept = places.setdefault(plan.tar(shard).name, [])
        num_candidates += 1
        if verdict["kept"]:
            kept.append(place)
        else:
            refused.update([" and ".join(verdict["reasons"])])
    num_kept = sum(map(len, places.values()))
    return Selection(places, num_kept, num_candidates, dict(sorted(refused.items())))


def advance(plan: Plan) -> Plan:
    """The plan of the finished set, with its selection, or that of the next round with more shards.

    A function of the measures and the settings: all workers go on alike.
    Raises ValueError where the settings' largest number of candidates does not suffice.
    """
    selection = select(plan)
    if selection.num_kept == plan.num_samples:
        return replace(plan, num_candidates=selection.num_candidates, selection=selection)
    factor = plan.gate.cfg.max_candidates
    limit = math.ceil(factor * plan.num_samples / plan.shard_size)
    if plan.num_shards >= limit:
        raise ValueError(
            f"{selection.num_kept} of {plan.num_samples} pairs are kept of {selection.num_candidates} candidates, and "
            f"generate.gate.max_candidates allows no more ({factor:g} x {plan.num_samples}); loosen generate.gate, or "
            f"raise max_candidates, or lower generate.num_samples: no shard is lost\n{_reasons_table(selection)}"
        )
    least = math.ceil(plan.num_shards * (1 + _LEAST_GROWTH))
    likely = math.ceil(plan.num_shards * plan.num_samples / max(1, selection.num_kept))
    # A first round that keeps next to nothing says little of the rate.
    num_shards = min(limit, max(least, min(likely, 2 * plan.num_shards)))
    return replace(plan, num_candidates=num_shards * plan.shard_size)


def as_far_as_known(plan: Plan) -> Plan:
    """The plan of the round that is at work; that of the finished set where there is one, or where there is no gate."""
    while plan.gate and not plan.selection and all(map(plan.is_done, range(plan.num_shards))):
        plan = advance(plan)
    return plan


def _reasons_table(selection: Selection) -> str:
    """A line for each reason, the most frequent first."""
    most = sorted(selection.refused.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(f"  {count:>8} refused: {reason}" for reason, count in most)


def _read_samples(tar: Path, records: Sequence[dict]) -> Iterator[Sample]:
    with open(tar, "rb") as stream:
        for record in records:
            content = read_members(stream.fileno(), record["members"], tar)
            check_digest(record["key"], content)
            yield decode_record(record["key"], content)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
