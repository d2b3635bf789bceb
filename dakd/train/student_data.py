"""The samples of a training set, and the steps that a student takes over them."""

from __future__ import annotations

import math
from pathlib import Path

from dakd.config import Config, TrainingSet
from dakd.data.datasets import StudentDataset
from dakd.data.held_out import held_out_places
from dakd.data.prepared import open_prepared, open_shards, open_unlabelled, reading_options
from dakd.data.shards import ShardSet
from dakd.runtime.runlog import say


def student_dataset(config: Config, training_set: TrainingSet, total_steps: int | None = None) -> StudentDataset:
    """The batches of a training set, which holds what its name says: real, synthetic, pseudo.

    Without the real samples that are held out.
    total_steps: of its training, over which a schedule of the kinds goes; None: those of `student_steps`.
    """
    steps = student_steps(config, training_set) if total_steps is None else total_steps
    return _open_dataset(config, training_set, steps * config.train_saross.global_batch)


def _open_dataset(
    config: Config, training_set: TrainingSet, num_positions: int | None = None, is_counted: bool = False
) -> StudentDataset:
    """is_counted: only the samples are to be counted: images that the run's step pseudo_label labels need no labels."""
    cfg = config.train_saross
    real = open_prepared(config, "train") if "real" in training_set else None
    if "synthetic" in training_set and config.refine.is_set and not (Path(config.pairs) / "index.json").is_file():
        raise ValueError(f"no refined pairs in {config.pairs}, which the settings of refine ask for; run: dakd refine")
    synthetic = open_shards(str(config.pairs), config.data) if "synthetic" in training_set else None
    pseudo = num_pseudo = None
    if is_counted and cfg.reads_pseudo_labels((training_set,)):
        num_images = len(open_unlabelled(config))
        num_pseudo = min(num_images, config.pseudo_label.max_samples or num_images)
    elif "pseudo" in training_set:
        pseudo = open_pseudo(config)
    return StudentDataset(
        real,
        synthetic,
        cfg.crop,
        mosaic=cfg.mosaic,
        flip=cfg.flip,
        seed=config.seed,
        num_synthetic=cfg.num_synthetic if synthetic is not None else None,
        pseudo=pseudo,
        num_pseudo=num_pseudo,
        hard_labels=cfg.loss.hard_labels,
        synthetic_share=cfg.synthetic_share,
        schedule=cfg.schedule,
        num_positions=num_positions,
        held_out=[] if real is None else held_out_places(real, cfg.validation.share, config.seed),
        **reading_options(config.data),
    )


def open_pseudo(config: Config) -> ShardSet:
    """The pseudo-labelled images.  ValueError where there are none."""
    place, folder = config.train_saross.pseudo, config.run_path / "pseudo_label"
    if place is None and not (folder / "index.json").is_file():
        raise ValueError(
            f"no pseudo-labelled images in {folder}; train the student of real (dakd train_saross --training-set "
            "real), then run the step pseudo_label"
        )
    return open_shards(place or str(folder), config.data)


def student_steps(config: Config, training_set: TrainingSet) -> int:
    """Optimizer steps of the student of a training set, so that all are compared at equal budgets.

    They are `steps`, or what `epochs` of the largest of `epoch_sets` make. With `budget: real_views` a set of real and
    synthetic samples takes as many more as it needs to draw as many real samples as `real` does.
    """
    cfg = config.train_saross
    steps = cfg.steps
    if steps is None:
        longest = max(_open_dataset(config, name, is_counted=True).epoch_length for name in cfg.epoch_sets)
        steps = cfg.epochs * math.ceil(longest / cfg.global_batch)
        say(f"student: {cfg.epochs} epochs of {longest} samples are {steps} steps")
    if cfg.budget == "steps":
        return steps
    own = _open_dataset(config, training_set, is_counted=True).mixing.steps_of_real_views(steps, cfg.global_batch)
    if own != steps:
        say(f"student {training_set}: {own} steps draw the {steps * cfg.global_batch} real samples of {steps} steps")
    return own
