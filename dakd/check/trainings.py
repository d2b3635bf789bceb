"""The trainings of an experiment: their nets, sets and losses, and the checkpoints that they resume from."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dakd.check.experiment import Experiment
from dakd.check.findings import Found, as_level, is_url, until_error
from dakd.config import TrainingSet
from dakd.data.datasets import check_pairs, stores_labels
from dakd.data.held_out import held_out_places, num_held_out
from dakd.data.loader import make_loader
from dakd.data.pipes import PipeDataset
from dakd.data.prepared import open_prepared, open_shards
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import common_range, range_for
from dakd.data.sources import bare_tars, default_cache, open_source
from dakd.runtime.sealed import MANIFEST
from dakd.train.checkpoint import check_identity, list_checkpoints
from dakd.train.dry_run import check_init_from, check_pretrained, cost_of_stage, cost_of_student
from dakd.train.jointnet import training_of_stage
from dakd.train.saross import StudentTraining, student_folder
from dakd.train.student_checks import check_batch_norm, check_loss, check_statistics
from dakd.train.teacher import stage_folder, stage_weights
from dakd.train.zero import fitting_micro_batch, zero_config

_FEW = 0.1  # share of the real samples in a training set below which check warns


def teacher(experiment: Experiment) -> Found:
    cfg = experiment.config.train_jointnet
    if not experiment.makes_pairs:
        sets = ", ".join(experiment.config.train_saross.training_sets)
        yield "ok", f"the pipeline makes none: no student of {sets} learns from its pairs"
        return
    fitting_micro_batch(cfg.global_batch, cfg.micro_batch, experiment.processes)
    zero_config(cfg.engine.deepspeed)
    last = cfg.stages[-1]  # of which all parameters are trained: no stage takes more
    experiment.costs["teacher"] = cost_of_stage(last, cfg, experiment.num_classes)
    own = [cfg.stage1.steps, cfg.stage2.steps, cfg.stage3.steps]
    yield "ok", f"{experiment.costs['teacher'].num_parameters / 1e6:.1f} M parameters, {sum(own)} steps"
    if cfg.optimizer.warmup_steps >= min(own):
        yield "warn", f"warmup_steps {cfg.optimizer.warmup_steps} last as long as a stage of {min(own)} steps"


def extra_images(experiment: Experiment) -> Found:
    """The images of stage 1 besides the prepared ones, or in their place."""
    cfg = experiment.config.train_jointnet
    if "stage1" not in cfg.stages or not experiment.makes_pairs:
        return
    if cfg.stage1.streams:
        yield from _streams(experiment)
        return
    for place in cfg.stage1.extra_images:
        yield from until_error(partial(_extra_set, experiment, place))


def _extra_set(experiment: Experiment, place: str) -> Found:
    if is_url(place):
        yield "ok", f"{place} is a URL and was not looked at"
        return
    cfg = experiment.config.data
    source = open_source(place, default_cache(cfg.cache, cfg.cache_gib))
    if source.read_small("index.json") is None:  # the training writes the index
        yield "ok", f"{place}: {len(bare_tars(source))} tars without an index"
    else:
        yield "ok", f"{place}: {len(open_shards(place, cfg, experiment.classes))} images"


def _streams(experiment: Experiment) -> Found:
    """Their commands are not run: they may take long, or change something."""
    cfg = experiment.config.train_jointnet
    dataset = PipeDataset(
        cfg.stage1.streams, cfg.crop, experiment.classes, flip=cfg.flip, seed=experiment.config.seed
    )
    make_loader(dataset, cfg.micro_batch, 0, experiment.processes, 0, cfg.engine.num_workers)
    yield "warn", f"{len(cfg.stage1.streams)} streams were not looked at: only stage 1 runs their commands"


def student(experiment: Experiment) -> Found:
    cfg = experiment.config.train_saross
    fitting_micro_batch(cfg.global_batch, cfg.micro_batch, experiment.processes)
    zero_config(cfg.engine.deepspeed)
    check_batch_norm(cfg)
    check_statistics(cfg, experiment.num_classes)
    experiment.costs["student"] = cost_of_student(cfg, experiment.num_classes)
    yield "ok", f"{cfg.student.name}, {experiment.costs['student'].num_parameters / 1e6:.1f} M parameters"
    if cfg.steps is not None and cfg.optimizer.warmup_steps >= cfg.steps:
        yield "warn", f"warmup_steps {cfg.optimizer.warmup_steps} last as long as the training of {cfg.steps} steps"
    folders = [student_folder(experiment.config, one) for one in cfg.training_sets]
    if cfg.student.pretrained is not None and not all(list_checkpoints(one / "checkpoints") for one in folders):
        check_pretrained(cfg, experiment.num_classes)
    if cfg.init_from is not None:  # read by a training that resumes too: its hash is part of the identity
        check_init_from(cfg, experiment.classes)


def training_sets(experiment: Experiment) -> Found:
    cfg = experiment.config.train_saross
    places = {"synthetic": cfg.synthetic, "pseudo": cfg.pseudo}
    used = {kind: place for kind, place in places.items() if any(kind in name for name in cfg.training_sets)}
    urls = [place for place in used.values() if place is not None and is_url(place)]
    if urls:
        yield from (("ok", f"{place} is a URL and was not looked at") for place in urls)
        return
    sets = {kind: _pair_set(experiment, kind, place) for kind, place in used.items()}
    for name in cfg.training_sets:
        yield from _mixed(experiment, name, {kind: pairs for kind, pairs in sets.items() if kind in name})
    if any("real" in name for name in cfg.training_sets) and "train" in experiment.splits:
        labelled, num_images = experiment.labelled("train")
        if labelled < num_images:
            yield "refused", f"{num_images - labelled} of {num_images} training images have no labels; expected all"
    yield "ok", ", ".join(cfg.training_sets)
    statistics = {name: cfg.statistics_of(name) for name in cfg.training_sets}
    if cfg.batch_norm == "separate" and all(one["batch_norm"] != "separate" for one in statistics.values()):
        yield "warn", "batch_norm separate is local: no training set mixes real and synthetic samples"
    left = [name for name, one in statistics.items() if one["recalibrate"] != cfg.recalibrate]
    if left:
        yield "warn", f"recalibrate {cfg.recalibrate} changes nothing in {', '.join(left)}: it has no real images"


def held_out(experiment: Experiment) -> Found:
    """The part of the training images that is for validation; by its size alone before they are prepared."""
    config, cfg = experiment.config, experiment.config.train_saross.validation
    if not cfg.share or "train" not in experiment.splits:
        return
    if experiment.report is None:
        num_images = experiment.labelled("train")[1]
        count = num_held_out(num_images, cfg.share)
    else:
        real = open_prepared(config, "train")
        num_images, count = len(real), len(held_out_places(real, cfg.share, config.seed))
    yield "ok", f"{count} of {num_images} training images are held out for validation"
    steps = config.train_saross.steps
    if steps is not None and cfg.every >= steps and (cfg.keep == "best" or cfg.patience is not None):
        yield "warn", f"validation.every {cfg.every} leaves one scoring in {steps} steps, and so nothing to choose from"


class _PairSet(NamedTuple):
    """soft_range: as in an index.  has_ignored: whether it stores hard labels, which mark pixels as ignored."""

    num_pairs: int
    soft_range: float | None
    has_ignored: bool


def _pair_set(experiment: Experiment, kind: str, place: str | None) -> _PairSet:
    """The synthetic or the pseudo-labelled set: that of a folder, or, for None, what the run's own step will make."""
    config = experiment.config
    if place is not None:
        pairs = open_shards(place, config.data)
        count, soft_range, has_ignored = len(pairs), pairs.index.soft_range, stores_labels(pairs)
    else:
        codec = config.generate.codec if kind == "synthetic" else config.pseudo_label.codec
        is_coded = codec == "logprob8"
        soft_range = range_for(config.soft_label_temperature, experiment.num_classes) if is_coded else None
        count, has_ignored = config.generate.num_samples, False
        if kind == "pseudo":
            num_images, has_ignored = experiment.num_unlabelled, config.pseudo_label.min_confidence > 0
            count = min(num_images, config.pseudo_label.max_samples or num_images)
    if kind == "synthetic":
        count = config.refine.num_written(count)
        has_ignored = has_ignored or config.refine.pixel_gate is not None
    return _PairSet(count, soft_range, has_ignored)


def _mixed(experiment: Experiment, name: TrainingSet, sets: dict[str, _PairSet]) -> Found:
    """Whether a student can learn from sets together.  sets: those of pairs, by kind."""
    cfg = experiment.config.train_saross
    soft_range = None
    if cfg.loss.hard_labels is not True:
        soft_range = common_range({pairs.soft_range for pairs in sets.values()}, f"the training set {name}")
    has_ignored = any(pairs.has_ignored for pairs in sets.values())
    check_loss(cfg, experiment.num_classes, bool(sets), soft_range, has_ignored)
    counts = {kind: pairs.num_pairs for kind, pairs in sets.items()}
    if any(counts.values()):  # without any images, `pseudo label` has said so
        wanted = (counts.get("synthetic"), cfg.crop, cfg.mosaic, cfg.num_synthetic, counts.get("pseudo", 0))
        yield from as_level("refused", partial(check_pairs, *wanted))
    if "real" in name and sets and "train" in experiment.splits and cfg.synthetic_share is None:
        num_real = experiment.labelled("train")[0]
        num_pairs = min(counts.get("synthetic", 0), cfg.num_synthetic or math.inf) + counts.get("pseudo", 0)
        if num_real < _FEW * (num_real + num_pairs):
            share = num_real / (num_real + num_pairs)
            yield (
                "warn",
                f"{name}: {num_real} real images beside {num_pairs} pairs are {100 * share:.1f} % of the samples that "
                "this student sees; set train_saross.synthetic_share, such as 0.5",
            )


def resume(experiment: Experiment) -> Found:
    """Checkpoints that are there must belong to these settings, as far as what they were trained on is there too."""
    config, found, fitting = experiment.config, 0, 0
    remade: dict[Path, list[Path]] = {}  # by an input that is not there, the folders of trainings
    stages = config.train_jointnet.stages if experiment.makes_pairs else ()
    sets = config.train_saross.training_sets
    trainings = [(one, stage_folder, training_of_stage, _made_for_stage) for one in stages]
    trainings += [(one, student_folder, StudentTraining, _made_for_student) for one in sets]
    for name, folder_of, make, made_for in trainings:
        folder = folder_of(config, name)
        if not list_checkpoints(folder / "checkpoints") and not (folder / MANIFEST).is_file():
            continue
        found += 1
        absent = next((path for path in made_for(experiment, name) if not path.is_file()), None)
        if absent is not None:
            remade.setdefault(absent, []).append(folder)
            continue
        try:
            if name in sets:
                _refuse_other_number_of_pairs(experiment, name, folder)
            training = make(config, name)
            check_identity(training.checkpoints, training.identity)
            training.is_done_without_checkpoints()
        except (ValueError, RuntimeError) as error:
            yield "refused", str(error)
        else:
            fitting += 1
    for absent, folders in remade.items():
        yield (
            "warn",
            f"{absent} is not there and will be made again; the checkpoints in {', '.join(map(str, folders))} are "
            "resumed only where it comes out the same: to train again, remove them",
        )
    if fitting == found:
        yield "ok", f"{found} trainings have checkpoints of these settings" if found else "nothing is trained yet"


def _refuse_other_number_of_pairs(experiment: Experiment, training_set: TrainingSet, folder: Path) -> None:
    """ValueError where generate would replace the pairs that a student was trained on by fewer or more."""
    index = experiment.run / "generate" / "index.json"
    if index not in _made_for_student(experiment, training_set):
        return
    found, wanted = ShardSet(index.parent).index.num_samples, experiment.config.generate.num_samples
    if found != wanted:
        raise ValueError(
            f"{folder} was trained beside {found} generated pairs, and generate.num_samples is {wanted}; set it back, "
            "or remove that folder to train again on the new ones"
        )


def _made_for_stage(experiment: Experiment, stage: str) -> list[Path]:
    """The files that a stage of the teacher is set up from, and that earlier steps and stages make where absent."""
    config, cfg = experiment.config, experiment.config.train_jointnet
    before = cfg.stages[: cfg.stages.index(stage)][-1:]
    return _training_images(experiment) + [stage_weights(config, one, cfg.init_from) for one in before]


def _made_for_student(experiment: Experiment, training_set: TrainingSet) -> list[Path]:
    """The same of a student."""
    config, cfg = experiment.config, experiment.config.train_saross
    names = (training_set, *cfg.epoch_sets)  # an epoch is as long as that of the largest of these
    needs_images = any("real" in name for name in names) or cfg.validation.share > 0
    inputs = _training_images(experiment) if needs_images else []
    has_own = cfg.synthetic is None or config.refine.is_set
    own_pairs = has_own and any("synthetic" in name for name in names)
    own_labels = cfg.pseudo is None and "pseudo" in training_set
    return [
        *inputs,
        *[Path(config.pairs) / "index.json"] * own_pairs,
        *[experiment.run / "pseudo_label" / "index.json"] * own_labels,
    ]


def _training_images(experiment: Experiment) -> list[Path]:
    # prepare makes a split again only with all others.
    return [] if experiment.report is not None else [experiment.run / "prepare" / "train" / "index.json"]
