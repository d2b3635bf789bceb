"""Whether an experiment fits: estimates of its memory and of the disk that its files take, for `dakd check`."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from pathlib import Path

import torch

from dakd.check.experiment import Experiment
from dakd.check.findings import Found
from dakd.data.readers.base import UNLABELLED
from dakd.runtime.runlog import format_count
from dakd.train.dry_run import memory_parts, precision_of
from dakd.train.optim import decays_of
from dakd.train.saross import StudentTraining
from dakd.train.teacher import TeacherTraining
from dakd.train.zero import fitting_micro_batch, zero_config

_TIGHT = 0.8  # share of the free disk or memory from which an estimate is a warning


def on_memory(experiment: Experiment) -> Found:
    """Findings on each training's memory."""
    config, processes = experiment.config, experiment.processes
    free, where = _free_memory()
    for name, cost in experiment.costs.items():
        cfg = config.train_saross if name == "student" else config.train_jointnet
        micro_batch = fitting_micro_batch(cfg.global_batch, cfg.micro_batch, processes)
        stage = zero_config(cfg.engine.deepspeed)["zero_optimization"]["stage"]
        precision = precision_of(cost, cfg, StudentTraining if name == "student" else TeacherTraining)
        parts = memory_parts(cost, precision, stage, processes, micro_batch, len(decays_of(cfg.optimizer)))
        needed = sum(parts.values()) * (1 if torch.cuda.is_available() else processes)
        if name == "student":
            needed *= config.train_saross.side_by_side(processes)
        said = f"{name}: about {_gib(needed)} of {_gib(free)} on the {where}"
        yield ("warn", f"{said}; lower micro_batch or crop") if needed > _TIGHT * free else ("ok", said)


def on_disk(experiment: Experiment) -> Found:
    """The finding on the disk that pairs, checkpoints and weights take."""
    config, cfg = experiment.config, experiment.config.generate
    height, width = cfg.size
    num_pairs = num_records = cfg.num_samples if experiment.makes_pairs else 0
    if config.refine.is_set and experiment.makes_pairs:
        num_records += config.refine.num_written(num_pairs)
    needed = num_records * height * width * _bytes_per_pixel(experiment, cfg.codec)
    num_labelled, of_labels = _pseudo_labels(experiment)
    needed += of_labels
    for name, cost in experiment.costs.items():
        section = config.train_saross if name == "student" else config.train_jointnet
        states = 3 + len(decays_of(section.optimizer))
        copies = len(config.train_saross.training_sets if name == "student" else section.stages)
        # One more checkpoint than are kept while one is written, and two files of weights.
        kept = section.engine.keep_checkpoints + 1
        needed += 4 * copies * (cost.num_parameters * (2 + kept) + cost.num_trained * kept * (states - 1))
    free = shutil.disk_usage(nearest_folder(experiment.run)).free
    labelled = f", {format_count(num_labelled)} pseudo-labelled images" if num_labelled else ""
    said = f"about {_gib(needed)} of {_gib(free)} free: {format_count(num_pairs)} pairs{labelled}, checkpoints, weights"
    if needed > free:
        yield "refused", f"{said}; free some, or set run_dir to another disk"
    else:
        yield ("warn" if needed > _TIGHT * free else "ok"), said


def _bytes_per_pixel(experiment: Experiment, codec: str) -> float:
    """Of an image with its soft label."""
    return 1 + experiment.num_classes * (2 if codec == "fp16" else 0.6)


def _pseudo_labels(experiment: Experiment) -> tuple[int, float]:
    """Number and bytes of the images that pseudo_label will write: before `prepare`, of the sizes of some."""
    cfg, count = experiment.config.pseudo_label, 0
    if experiment.config.train_saross.reads_pseudo_labels():
        count = min(experiment.num_unlabelled, cfg.max_samples or math.inf)
    if not count:
        return 0, 0.0
    if experiment.unlabelled is not None:
        sizes = {tuple(map(int, size.split("x"))): number for size, number in experiment.unlabelled.sizes.items()}
    else:
        sizes = Counter(experiment.sizes.get(UNLABELLED, ()))
    pixels = sum(height * width * number for (height, width), number in sizes.items()) / max(1, sum(sizes.values()))
    return count, count * pixels * _bytes_per_pixel(experiment, cfg.codec)


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that exists; ValueError where the path would lie below a file."""
    place = next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))
    if not place.is_dir():
        what = "a broken link" if place.is_symlink() and not place.exists() else "a file"
        raise ValueError(f"{place} is {what}; expected a folder for the run {path}; set run_dir or name")
    return place


def _free_memory() -> tuple[float, str]:
    """Bytes that a training can take, and of which device; infinite where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "GPU"
    facts = Path("/proc/meminfo")
    # MemAvailable counts the cache of files, which gives way; MemFree does not.
    lines = facts.read_text().splitlines() if facts.is_file() else []
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return (math.inf if available is None else 1024 * float(available)), "host"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
