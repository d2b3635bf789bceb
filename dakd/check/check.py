"""`dakd check`: the whole experiment looked at before its first costly step, with all findings at once.

Every finding comes from the function by which a step itself refuses, called on what is known beforehand: the settings,
some files of the dataset, the nets on torch's meta device, and what the run folder already holds. Nothing is written.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import torch

from dakd.check.capacity import Found, Level, nearest_folder, on_disk, on_memory
from dakd.config import Config
from dakd.data.degenerate import notes_on_set, refuse_flat_images, refuse_unknown_labels
from dakd.data.prepare import found_report
from dakd.data.prepared import open_prepared, open_shards
from dakd.data.readers import BadFile, Dataset, open_dataset
from dakd.data.readers.label_meaning import refuse_contradiction
from dakd.data.sample import IGNORE_INDEX, ClassTable
from dakd.data.soft_labels import get_codec, range_for
from dakd.evaluate.extractors import import_torch_fidelity
from dakd.evaluate.inputs import open_folder, student_classes
from dakd.generate.gate import open_gate
from dakd.generate.teacher import refuse_settings_of_another_set
from dakd.kernels import backend
from dakd.predict.images import list_images
from dakd.runtime import distributed
from dakd.runtime.place import hint_about_slurm, refuse_launcher, refuse_mpi
from dakd.shipped import extra_remedy
from dakd.train.checkpoint import check_identity, list_checkpoints
from dakd.train.dry_run import Cost, cost_of_stage, cost_of_student, num_classes_of
from dakd.train.jointnet import training_of_stage
from dakd.train.saross import StudentTraining, check_batch_norm, check_loss, student_folder
from dakd.train.teacher import stage_folder
from dakd.train.zero import fitting_micro_batch, zero_config

_NUM_FILES = 24  # of a split, evenly spread, that are read


@dataclass(frozen=True)
class Finding:
    """level: "refused" where a step would end with this error."""

    topic: str
    level: Level
    text: str


def check(config: Config, processes: int = 1) -> list[Finding]:
    """All findings on an experiment; processes: ranks of each training."""
    return list(_Experiment(config, processes).findings())


def is_refused(findings: list[Finding]) -> bool:
    return any(finding.level == "refused" for finding in findings)


def format_findings(findings: list[Finding]) -> str:
    """One line a finding; further lines of a message are indented."""
    width = max(len(finding.topic) for finding in findings)
    indent = "\n" + " " * (width + 11)
    return "\n".join(
        f"{finding.level:<9}{finding.topic:<{width}}  {finding.text.replace(chr(10), indent)}" for finding in findings
    )


class _Experiment:
    """The checks of one experiment, and the facts that several of them share."""

    def __init__(self, config: Config, processes: int) -> None:
        self.config, self.processes = config, processes
        self.run, self.num_classes = config.run_path, num_classes_of(config)
        self.costs: dict[str, Cost] = {}  # of the nets that can be built, by the training's name

    def findings(self) -> Iterator[Finding]:
        checks: dict[str, Callable[[], Found]] = {
            "run folder": self._run_folder,
            "launcher": self._launcher,
            "packages": self._packages,
            "backend": self._backends,
            "data": self._data,
            "teacher": self._teacher,
            "extra images": self._extra_images,
            "generate": self._generate,
            "student": self._student,
            "training sets": self._training_sets,
            "resume": self._resume,
            "evaluate": self._evaluate,
            "predict": self._predict,
            "memory": self._memory,
            "disk": self._disk,
        }
        refused: set[str] = set()  # several steps may refuse one thing; it is reported once
        for topic, run in checks.items():
            for level, text in _until_error(run):
                if level != "refused" or text not in refused:
                    yield Finding(topic, level, text)
                if level == "refused":
                    refused.add(text)

    # -- place and software -------------------------------------------------------------------------------------------

    def _run_folder(self) -> Found:
        if self.run.exists() and not self.run.is_dir():
            raise ValueError(f"{self.run} is a file; expected a folder; set run_dir or name")
        place = nearest_folder(self.run)
        if not os.access(place, os.W_OK | os.X_OK):
            raise ValueError(f"{self.run} cannot be written ({place} is read-only for this user); set run_dir")
        yield "ok", f"{self.run} {'is there' if self.run.is_dir() else 'will be made'}"

    def _launcher(self) -> Found:
        """Variables of another launcher: a training would wait for its ranks."""
        refuse_mpi()
        refuse_launcher("pipeline")
        yield from (("warn", hint) for hint in [hint_about_slurm()] if hint)

    def _packages(self) -> Found:
        config, needed = self.config, {"deepspeed": "train"}
        for section in (config.train_jointnet, config.train_saross):
            if section.engine.wandb in ("online", "offline"):
                needed["wandb"] = "train"
        missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
        for name, extra in missing.items():
            yield "refused", f"{name} is not installed; run: {extra_remedy(extra)}"
        if config.evaluate.fidelity.extractor != "none":
            import_torch_fidelity()
        if config.generate.codec == "logprob8" and importlib.util.find_spec("zstandard") is None:
            yield "refused", "codec logprob8 needs zstandard, which is not installed; pip install zstandard"
        if not missing:
            yield "ok", ", ".join(needed)
        yield from self._compilers()

    def _compilers(self) -> Found:
        """torch.compile calls them at the first step."""
        variable, name = ("CC", "gcc") if distributed.device().type == "cuda" else ("CXX", "g++")
        compiler = os.environ.get(variable) or name
        for step in ("train_jointnet", "train_saross"):
            if getattr(self.config, step).engine.compile and shutil.which(compiler) is None:
                yield "refused", f"{step}.engine.compile is true, and there is no {compiler}; install it, or set false"

    def _backends(self) -> Found:
        kind = distributed.device().type
        choices = backend.report(kind, self.num_classes)
        named = sorted({choice.chosen for choice in choices})
        yield "ok", f"operations run on {kind} with {', '.join(named)}"
        if self.config.generate.capture is True and kind != "cuda":
            yield "refused", "generate.capture is true, which needs a GPU; set it to auto or false"
        if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield "warn", "this GPU has no bf16, which precision auto takes; set precision to fp32"
        num_gpus = torch.cuda.device_count()
        if num_gpus > self.processes:
            yield "warn", f"{self.processes} of {num_gpus} GPUs are used: they must share both global batches evenly"

    # -- data ---------------------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.config.prepare, self.config.seed)

    @cached_property
    def report(self) -> dict | None:
        """Of the prepared set that is there."""
        return found_report(self.config)

    def _data(self) -> Found:
        if self.report is not None:
            for split, facts in self.report["splits"].items():
                yield "ok", f"{split}: {facts['num_samples']} samples are prepared"
                yield from (("warn", line) for line in notes_on_set(split, facts))
                sizes = [tuple(int(side) for side in size.split("x")) for size in facts["sizes"]]
                yield from self._crops(split, sizes)
            splits = tuple(self.report["splits"])
        else:
            yield from _problems(self.dataset, self.config.prepare.on_bad_file == "skip")
            for split in self.dataset.splits:
                yield from self._look_into(self.dataset, split)
            meanings = {split: self.dataset.label_meaning(split) for split in self.dataset.splits}
            meanings = {split: meaning for split, meaning in meanings.items() if meaning is not None}
            yield from (("ok", meaning.describe(split)) for split, meaning in meanings.items())
            refuse_contradiction(meanings)
            splits = self.dataset.splits
        if "train" not in splits:
            yield "refused", f"there is no train split (found {', '.join(splits) or 'none'}); expected train/"
        if self.config.evaluate.folder is None and self.config.evaluate.split not in splits:
            yield "refused", f"evaluate.split is {self.config.evaluate.split}, which the dataset lacks; give it one"

    def _look_into(self, dataset: Dataset, split: str) -> Found:
        entries = dataset.entries(split)
        count = min(len(entries), _NUM_FILES)
        some = [entries[i * len(entries) // count] for i in range(count)]
        sizes, bad, num_flat, labels = [], [], 0, SimpleNamespace(num_labelled=0, class_pixels=[0], ignored_pixels=0)
        for entry in some:
            try:
                sample = dataset.read(entry)
            except BadFile as problem:
                bad.append(problem)
            else:
                sizes.append(self.config.prepare.resize or sample.sar.shape)
                num_flat += int(sample.sar.min() == sample.sar.max())
                if sample.label is not None:
                    unknown = int((sample.label == IGNORE_INDEX).sum())
                    labels.num_labelled += 1
                    labels.ignored_pixels += unknown
                    labels.class_pixels[0] += sample.label.size - unknown
        level: Level = "warn" if self.config.prepare.on_bad_file == "skip" else "refused"
        yield from ((level, str(problem)) for problem in bad)
        if entries:
            labelled = sum(entry.label_path is not None for entry in entries)
            masks = "" if self.config.prepare.dataset == "simulated" else f", {labelled} with labels"
            yield "ok", f"{split}: {len(entries)} images{masks}; {count} of them were read"
        where, of_all = f"{split} ({count} files were read)", "refused" if len(sizes) == len(entries) else "warn"
        if split == "train":
            yield from self._crops(split, sizes)
            yield from _as_level(of_all, partial(refuse_flat_images, num_flat, len(sizes), where))
        yield from _as_level(of_all, partial(refuse_unknown_labels, labels, where))

    def _crops(self, split: str, sizes: list[tuple[int, int]]) -> Found:
        """Smaller images are padded with unknown pixels, which is seldom meant."""
        for step in ("train_jointnet", "train_saross") if split == "train" and sizes else ():
            crop = getattr(self.config, step).crop
            small = [size for size in sizes if size[0] < crop[0] or size[1] < crop[1]]
            if small:
                found, wanted = "x".join(map(str, small[0])), "x".join(map(str, crop))
                yield "warn", f"{step}.crop {wanted} is larger than images of {found}, which are padded"

    # -- trainings ----------------------------------------------------------------------------------------------------

    def _teacher(self) -> Found:
        cfg = self.config.train_jointnet
        fitting_micro_batch(cfg.global_batch, cfg.micro_batch, self.processes)
        zero_config(cfg.engine.deepspeed)
        last = cfg.stages[-1]  # of which all parameters are trained: no stage takes more
        self.costs["teacher"] = cost_of_stage(last, cfg, self.num_classes)
        own = [cfg.stage1.steps, cfg.stage2.steps, cfg.stage3.steps]
        yield "ok", f"{self.costs['teacher'].num_parameters / 1e6:.1f} M parameters, {sum(own)} steps"
        if cfg.optimizer.warmup_steps >= min(own):
            yield "warn", f"warmup_steps {cfg.optimizer.warmup_steps} last as long as a stage of {min(own)} steps"

    def _extra_images(self) -> Found:
        for place in self.config.train_jointnet.stage1.extra_images:
            if _is_url(place):
                yield "ok", f"{place} is a URL and was not looked at"
            elif not Path(place).expanduser().exists():
                yield "refused", f"train_jointnet.stage1.extra_images names {place}, which does not exist"

    @cached_property
    def classes(self) -> ClassTable:
        if self.report is not None:
            return open_prepared(self.config, "train").classes
        return self.dataset.classes

    def _generate(self) -> Found:
        cfg = self.config.generate
        teacher = self.config.train_jointnet
        if cfg.size != teacher.crop:  # the net's levels must divide it
            cost_of_stage(teacher.stages[-1], teacher.model_copy(update={"crop": cfg.size}), self.num_classes)
        get_codec(cfg.codec, self.config.soft_label_temperature)
        yield "ok", f"{cfg.num_samples} pairs of {cfg.size[0]}x{cfg.size[1]}, {cfg.codec}"
        for key, path in (("gate.student", cfg.gate.student), ("audit.student", cfg.audit.student)):
            if path is not None and not Path(path).expanduser().is_file():
                yield "refused", f"generate.{key} is {path}, which is no file; give a student.safetensors"
        open_gate(self.config, self.classes)
        refuse_settings_of_another_set(self.config)

    def _student(self) -> Found:
        cfg = self.config.train_saross
        fitting_micro_batch(cfg.global_batch, cfg.micro_batch, self.processes)
        zero_config(cfg.engine.deepspeed)
        check_batch_norm(cfg)
        if cfg.student.pretrained is not None and not Path(cfg.student.pretrained).expanduser().exists():
            yield "refused", f"train_saross.student.pretrained is {cfg.student.pretrained}, which does not exist"
        self.costs["student"] = cost_of_student(cfg, self.num_classes)
        yield "ok", f"{cfg.student.name}, {self.costs['student'].num_parameters / 1e6:.1f} M parameters"
        if cfg.steps is not None and cfg.optimizer.warmup_steps >= cfg.steps:
            yield "warn", f"warmup_steps {cfg.optimizer.warmup_steps} last as long as the training of {cfg.steps} steps"

    def _training_sets(self) -> Found:
        cfg, generate = self.config.train_saross, self.config.generate
        has_synthetic = any("synthetic" in name for name in cfg.training_sets)
        soft_range, available = None, generate.num_samples
        if generate.codec == "logprob8":
            soft_range = range_for(self.config.soft_label_temperature, self.num_classes)
        if has_synthetic and cfg.synthetic is not None:
            if _is_url(cfg.synthetic):
                yield "ok", f"{cfg.synthetic} is a URL and was not looked at"
                return
            pairs = open_shards(cfg.synthetic, self.config.data)
            soft_range, available = pairs.index.soft_range, len(pairs)
        check_loss(cfg, self.num_classes, has_synthetic, soft_range)
        least = 4 if cfg.mosaic else 1
        wanted = available if cfg.num_synthetic is None else cfg.num_synthetic
        if has_synthetic and not least <= wanted <= available:
            yield (
                "refused",
                f"num_synthetic is {wanted} of {available} synthetic pairs; expected at most all of them, and at "
                f"least {least} (mosaic: {cfg.mosaic})",
            )
        if self.report is None and any("real" in name for name in cfg.training_sets):
            entries = self.dataset.entries("train") if self.config.prepare.dataset != "simulated" else []
            without = sum(entry.label_path is None for entry in entries)
            if without:
                yield "refused", f"{without} of {len(entries)} training images have no labels; expected all"
        yield "ok", ", ".join(cfg.training_sets)

    def _resume(self) -> Found:
        """Checkpoints that are there must belong to these settings."""
        config, found, fitting = self.config, 0, 0
        places = {stage_folder(config, one): partial(training_of_stage, config, one)
                  for one in config.train_jointnet.stages}  # fmt: skip
        places |= {student_folder(config, one): partial(StudentTraining, config, one)
                   for one in config.train_saross.training_sets}  # fmt: skip
        for folder, make in places.items():
            if not list_checkpoints(folder / "checkpoints"):
                continue
            found += 1
            try:
                training = make()
                check_identity(training.checkpoints, training.identity)
            except (ValueError, RuntimeError) as error:
                yield "refused", str(error)
            else:
                fitting += 1
        if fitting == found:
            yield "ok", f"{found} trainings have checkpoints of these settings" if found else "nothing is trained yet"

    # -- the steps after them -----------------------------------------------------------------------------------------

    def _evaluate(self) -> Found:
        cfg = self.config.evaluate
        if cfg.student is not None and not Path(cfg.student).expanduser().is_file():
            yield "refused", f"no weights file at {cfg.student}; set evaluate.student to a student.safetensors"
        if cfg.folder is not None:
            yield from self._evaluated_folder()
        weights = cfg.fidelity.weights
        if cfg.fidelity.extractor == "inception" and weights is not None and not Path(weights).is_file():
            yield "refused", f"no weights of InceptionV3 at {weights}; set evaluate.fidelity.weights to them"
        yield "ok", f"the folder {cfg.folder}" if cfg.folder is not None else f"the {cfg.split} split"

    def _evaluated_folder(self) -> Found:
        student = Path(self.config.evaluate.student or "").expanduser()
        classes = student_classes(student) if student.is_file() else self.classes
        dataset, split = open_folder(self.config, classes)
        yield from _problems(dataset, self.config.prepare.on_bad_file == "skip")
        yield from self._look_into(dataset, split)
        if (meaning := dataset.label_meaning(split)) is not None:
            yield "ok", meaning.describe(split)

    def _predict(self) -> Found:
        cfg, names = self.config.predict, self.config.train_saross.training_sets
        chosen = cfg.training_set or names[-1]
        if chosen not in names and not student_folder(self.config, chosen).exists():
            yield (
                "refused",
                f"predict.training_set is {chosen}, which train_saross.training_sets ({', '.join(names)}) does not "
                "train; set it to one of them",
            )
        if cfg.inputs is not None:
            found, _ = list_images(Path(cfg.inputs).expanduser())
            yield "ok", f"{len(found)} images in {cfg.inputs}"
        else:
            yield "ok", f"the first {cfg.num_images} images of the test split"

    # -- memory and disk ----------------------------------------------------------------------------------------------

    def _memory(self) -> Found:
        yield from on_memory(self.config, self.costs, self.processes)

    def _disk(self) -> Found:
        yield from on_disk(self.config, self.costs, self.num_classes)


def _until_error(run: Callable[[], Found]) -> Found:
    """The findings of one check; an error that ends it is the last one."""
    try:
        yield from run()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        yield "refused", str(error)


def _problems(dataset: Dataset, may_skip: bool) -> Found:
    level: Level = "warn" if may_skip else "refused"
    yield from ((level, str(problem)) for problem in dataset.problems())
    yield from (("warn", f"not read: {name}") for name in dataset.unread())
    if all(dataset.entries(split) for split in dataset.splits):
        dataset.check()


def _as_level(level: Level, refuse: Callable[[], None]) -> Found:
    """What a step refuses of all files, of those that were read."""
    try:
        refuse()
    except ValueError as error:
        yield level, str(error)


def _is_url(place: str) -> bool:
    return "://" in place
