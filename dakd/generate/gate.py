"""The gate: the candidates that a set keeps.

Shards hold all candidates. Next to the shards lie files with the measures of their samples, each made once by the first
worker that comes to it. Measures do not depend on the bounds, so a set with other bounds is chosen in seconds. The kept
samples follow from the measures in the order of the samples: first the bounds of each sample, then the quotas of the
set. Where too few are kept, every worker computes the same number of further shards to make.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dakd.config import Bounds, Config, GateConfig, ShareBounds
from dakd.data.index import RecordInfo
from dakd.data.publish import publish_text
from dakd.data.records import check_digest, decode_record, read_members
from dakd.data.sample import ClassTable, Sample
from dakd.data.shards import shard_name
from dakd.generate.gate_measures import GateMeasures, Labeller, held_classes, measure, measuring_settings
from dakd.generate.plan import GenerationPlan, Selection, keep_first, sample_key
from dakd.generate.sidecar import checked_sidecar
from dakd.runtime import distributed
from dakd.runtime.sealed import Changed, parse_sealed, seal
from dakd.weights import real_student

_FORMAT = 1
# A round makes at least this share more than there is: rounds stay few however rare a class is.
_MIN_GROWTH = 1 / 8
_ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001

SURPLUS = "surplus"  # the set was full before


class Gate:
    """Measures the shards of a set, and judges their samples by the measures.

    Raises ValueError where the settings name a class that the table does not have, or a student's file that is absent.
    """

    def __init__(self, cfg: GateConfig, classes: ClassTable, own_student: Path | None = None) -> None:
        """own_student: the file in the place of `cfg.student`, where that is the word for the run's own student."""
        self.cfg, self.classes = cfg, classes
        self._student_file = own_student or (None if cfg.student is None else Path(cfg.student))
        for name in [*cfg.areas, *cfg.quotas, *([cfg.enl_class] if cfg.enl.is_set else [])]:
            classes.id_of(name)
        self._measuring = measuring_settings(cfg, self._student_file)
        self._hash = _digest(self._measuring)
        self._student: Labeller | None = None

    def open_student(self) -> None:
        """Load the gate's student, if it has one, unless it is loaded.

        Raises ValueError where it cannot be read or knows other classes than the teacher.
        """
        if self._student_file is not None and self._student is None:
            self._student = Labeller(self._student_file, self.classes, distributed.device())

    def path(self, plan: GenerationPlan, shard: int) -> Path:
        """The file with the measures of a shard's samples; gates that measure alike share it."""
        return plan.folder / "measures" / self._hash[:16] / f"{shard_name(shard)}.json"

    def is_measured(self, plan: GenerationPlan, shard: int) -> bool:
        return self.path(plan, shard).exists()

    def measure(self, plan: GenerationPlan, shard: int, before_each: Callable[[], None] = lambda: None) -> bool:
        """Measure a finished shard; False where another worker was first.

        before_each: called at each sample.  Raises one of sidecar.DAMAGE_ERRORS where the shard is damaged.
        """
        self.open_student()
        info, samples = checked_sidecar(plan, shard), []
        for sample in _read_samples(plan.tar(shard), info.records):
            before_each()
            samples.append(measure(sample, self.classes, self.cfg, self._student)._asdict())
        content = {"format": _FORMAT, "shard": info.sha256, "measuring": self._hash, "samples": samples}
        return publish_text(self.path(plan, shard), seal(json.dumps(content)))

    def read(self, plan: GenerationPlan, shard: int) -> list[GateMeasures]:
        """The measures of a shard's samples; ValueError where the file is damaged or of another shard."""
        path = self.path(plan, shard)
        try:
            content = parse_sealed(path.read_bytes(), path)
            samples = [GateMeasures(**one) for one in content["samples"]]
            is_known = content["format"] == _FORMAT
        except Changed:
            raise ValueError(f"{path} is damaged (its bytes have changed); run the same with --repair") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); run the same with --repair") from None
        if not is_known:
            raise ValueError(f"{path} has the format {content['format']!r:.20}; run the same with --repair")
        if content["measuring"] != self._hash or content["shard"] != checked_sidecar(plan, shard).sha256:
            raise ValueError(f"{path} measures another {plan.tar(shard).name}; run the same with --repair")
        return samples

    def refuse(self, measures: GateMeasures) -> list[str]:
        """The bounds that a sample breaks; an empty list where it may be kept."""
        pixels, cfg = measures.class_pixels, self.cfg
        bounded: list[tuple[str, float | None, Bounds]] = [
            ("entropy", measures.entropy, cfg.entropy),
            ("agreement", measures.agreement, cfg.agreement),
            ("ENL", measures.enl, cfg.enl),
        ]
        for name, bounds in cfg.areas.items():
            bounded.append((f"area of {name}", pixels[self.classes.id_of(name)] / sum(pixels), bounds))
        return [name for name, value, bounds in bounded if value is not None and not bounds.low <= value <= bounds.high]

    def held_by(self, measures: GateMeasures) -> set[str]:
        """The names of the classes that a sample holds."""
        return {self.classes.names[number] for number in held_classes(measures.class_pixels)}

    @property
    def facts(self) -> dict:
        """The settings and constants by which candidates are kept."""
        return self.cfg.model_dump(mode="json", exclude={"enabled", "max_candidates"}) | self._measuring


@dataclass(frozen=True)
class Verdict:
    """The judgement of a candidate: it is kept unless there are reasons against it.  place: within its shard."""

    shard: int
    place: int
    key: str
    reasons: list[str]
    measures: GateMeasures

    @property
    def line(self) -> dict:
        """Its line of verdicts.jsonl."""
        return {"key": self.key, "kept": not self.reasons, "reasons": self.reasons, **self.measures._asdict()}


def open_gate(config: Config, classes: ClassTable) -> Gate | None:
    """The gate of a run; None where it is off.  ValueError where its student is the run's own and not trained yet."""
    cfg = config.generate.gate
    if not cfg.enabled:
        return None
    return Gate(cfg, classes, real_student(config, "generate.gate.student") if cfg.asks_own_student else None)


def judge(plan: GenerationPlan, gate: Gate) -> Iterator[Verdict]:
    """The verdicts on the candidates in order, up to the end of the shard in which the set is full."""
    quotas = Quotas(gate.cfg.quotas, plan.num_samples)
    for shard in range(plan.num_shards):
        for place, (index, measures) in enumerate(zip(plan.indices(shard), gate.read(plan, shard))):
            reasons = gate.refuse(measures) or quotas.offer(gate.held_by(measures))
            yield Verdict(shard, place, sample_key(index), reasons, measures)
        if quotas.is_full:
            return


def select(plan: GenerationPlan, gate: Gate) -> Selection:
    """The selection from the shards that the plan has so far, all of which are measured."""
    places: dict[str, list[int]] = {}
    refused: Counter[str] = Counter()
    num_candidates = 0
    for verdict in judge(plan, gate):
        kept = places.setdefault(plan.tar(verdict.shard).name, [])
        num_candidates += 1
        if verdict.reasons:
            refused[" and ".join(verdict.reasons)] += 1
        else:
            kept.append(verdict.place)
    return Selection(places, num_candidates, dict(sorted(refused.items())))


def next_round(plan: GenerationPlan, gate: Gate | None) -> tuple[GenerationPlan, Selection | None]:
    """After all shards of a plan: the finished set's plan and selection; or a plan with more shards, and None.

    A function of the measures and the settings: all workers come to the same.
    Raises ValueError where the settings' largest number of candidates does not suffice.
    """
    if gate is None:
        return plan, keep_first(plan)
    selection = select(plan, gate)
    if selection.num_kept == plan.num_samples:
        return replace(plan, num_candidates=selection.num_candidates), selection
    factor = gate.cfg.max_candidates
    limit = math.ceil(factor * plan.num_samples / plan.shard_size)
    if plan.num_shards >= limit:
        raise ValueError(
            f"{selection.num_kept} of {plan.num_samples} pairs are kept of {selection.num_candidates} candidates, and "
            f"generate.gate.max_candidates allows no more ({factor:g} x {plan.num_samples}); loosen generate.gate, or "
            f"raise max_candidates, or lower generate.num_samples: no shard is lost\n{_reasons_table(selection)}"
        )
    least = math.ceil(plan.num_shards * (1 + _MIN_GROWTH))
    likely = math.ceil(plan.num_shards * plan.num_samples / max(1, selection.num_kept))
    # At most twice as many: a first round that keeps next to nothing says little about the rate.
    num_shards = min(limit, max(least, min(likely, 2 * plan.num_shards)))
    return replace(plan, num_candidates=num_shards * plan.shard_size), None


def current_round(plan: GenerationPlan, gate: Gate | None) -> tuple[GenerationPlan, Selection | None]:
    """The plan of the round whose shards are being made, and None; or the finished set's plan and selection."""
    selection = None
    while selection is None and all(is_done(plan, gate, shard) for shard in range(plan.num_shards)):
        plan, selection = next_round(plan, gate)
    return plan, selection


def is_done(plan: GenerationPlan, gate: Gate | None, shard: int) -> bool:
    """Whether a shard is finished, and measured where there is a gate."""
    return plan.is_finished(shard) and (gate is None or gate.is_measured(plan, shard))


def _reasons_table(selection: Selection) -> str:
    """A line for each reason, the most frequent first."""
    most = sorted(selection.refused.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(f"  {count:>8} refused: {reason}" for reason, count in most)


def _read_samples(tar: Path, records: Sequence[RecordInfo]) -> Iterator[Sample]:
    with open(tar, "rb") as stream:
        for record in records:
            content = read_members(stream.fileno(), record.members, tar)
            check_digest(record.key, content)
            yield decode_record(record.key, content)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Quotas:
    """Takes candidates for a set of `num_samples` images, of which shares within bounds hold each class.

    Each candidate is looked at once, in the order of the indices, and the decision depends only on those before it. So
    the result is a function of the candidates up to the last kept one: neither further candidates nor the workers that
    made them, nor the order in which they were made, can change it.

    quotas: by class. A set that becomes full has at least ceil(at_least * num_samples) and at most
    floor(at_most * num_samples) images with the class. Its beginnings keep to the shares as nearly as possible: where
    images of a class are due, candidates without any class that is due are refused.
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
        """Keep a candidate that holds these classes, or return the reasons against it; none means that it is kept."""
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
        # Due is a class whose least share the set with one more image would miss.
        due = [
            name
            for name, quota in self._quotas.items()
            if self._counts[name] < math.floor((quota.at_least or 0) * (self.num_kept + 1) + _ROUNDING)
        ]
        if held.intersection(due):
            return []
        missing = [name for name, expected in self._wanted.items() if self._counts[name] < expected]
        free = self.num_samples - self.num_kept
        if not due and not held.intersection(missing):
            # No free place may go to another image once each is needed for one that a class still lacks.
            due = missing if free <= sum(self._wanted[name] - self._counts[name] for name in missing) else []
        if due:
            return [f"fewer {name} than its quota" for name in due]
        # Early is a class whose largest share is reached for a set of this size, though not for the full one.
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
