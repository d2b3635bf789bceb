"""What an experiment makes with its nets: pairs, evaluations and predictions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from dakd.check.data import look_into, problems
from dakd.check.experiment import Experiment
from dakd.check.findings import Found, until_error
from dakd.config.generate import OWN_STUDENT
from dakd.data.prepared import HOW_TO_ADD_UNLABELLED
from dakd.data.readers.label_meaning import LabelMeaning
from dakd.data.soft_labels import get_codec
from dakd.evaluate.extractors import find_inception
from dakd.evaluate.inputs import (
    choose_students,
    learnt_meaning,
    open_folder,
    open_student,
    refuse_other_meaning,
    refuse_unlabelled,
    student_classes,
)
from dakd.evaluate.neighbours import student_encoder
from dakd.evaluate.students import refuse_unknown_objects
from dakd.generate.gate import Gate, open_gate
from dakd.generate.gate_measures import Labeller
from dakd.generate.teacher import refuse_settings_of_another_set
from dakd.predict.images import list_images, read_image, refuse_outputs_as_inputs
from dakd.predict.predict import refuse_no_test_split
from dakd.pseudo_label.step import refuse_settings_of_another_set as refuse_other_pseudo_labels
from dakd.refine.losses import PairLosses
from dakd.train.dry_run import cost_of_stage
from dakd.train.saross import student_folder


def generate(experiment: Experiment) -> Found:
    if not experiment.makes_pairs:
        return
    cfg = experiment.config.generate
    teacher = experiment.config.train_jointnet
    if cfg.size != teacher.crop:  # the net's levels must divide it
        cost_of_stage(teacher.stages[-1], teacher.model_copy(update={"crop": cfg.size}), experiment.num_classes)
    get_codec(cfg.codec, experiment.config.soft_label_temperature)
    yield "ok", f"{cfg.num_samples} pairs of {cfg.size[0]}x{cfg.size[1]}, {cfg.codec}"
    yield from until_error(partial(_students_of_pairs, experiment))
    refuse_settings_of_another_set(experiment.config)


def _students_of_pairs(experiment: Experiment) -> Found:
    gate, audit = experiment.config.generate.gate, experiment.config.generate.audit
    absent = False
    named = [("gate.student", gate.student)] if gate.student != OWN_STUDENT else []
    for key, path in (*named, ("audit.student", audit.student)):
        if path is not None and not Path(path).expanduser().is_file():
            absent = True
            yield "refused", f"generate.{key} is {path}, which is no file; give a student.safetensors"
    if absent:
        return
    own = experiment.config.real_student
    if gate.asks_own_student and not own.is_file():
        Gate(gate.model_copy(update={"student": None}), experiment.classes)
        yield "ok", "gate.student is the student of the set real, which the pipeline trains before"
    elif open_gate(experiment.config, experiment.classes) is not None and gate.student is not None:
        Labeller(own if gate.asks_own_student else gate.student, experiment.classes, torch.device("cpu"))
    if audit.student is not None:
        student_encoder(audit.student, torch.device("cpu"))


def refine(experiment: Experiment) -> Found:
    cfg, own = experiment.config.refine, experiment.config.real_student
    if not cfg.is_set or not any("synthetic" in name for name in experiment.config.train_saross.training_sets):
        return
    if own.is_file():
        PairLosses(own, experiment.classes, torch.device("cpu"))
        yield "ok", f"by the student {own}"
    else:
        yield "ok", "by the student of the set real, which the pipeline trains before"


def pseudo_label(experiment: Experiment) -> Found:
    """What self-training needs: the student that labels, images without labels, and the set that is there."""
    config, cfg = experiment.config, experiment.config.train_saross
    if not cfg.reads_pseudo_labels():
        return
    get_codec(config.pseudo_label.codec, config.soft_label_temperature)
    num_images = experiment.num_unlabelled
    if num_images == 0:
        yield (
            "refused",
            f"train_saross.training_sets is {', '.join(cfg.training_sets)}, and there are no images without labels; "
            f"{HOW_TO_ADD_UNLABELLED}",
        )
    else:
        yield "ok", f"{num_images} images without labels, {config.pseudo_label.codec}"
    refuse_other_pseudo_labels(config)


def evaluate(experiment: Experiment) -> Found:
    cfg = experiment.config.evaluate
    yield from until_error(partial(_evaluated_student, experiment))
    yield from until_error(partial(_evaluated_images, experiment))
    if cfg.fidelity.extractor == "inception" and find_inception(cfg.fidelity.weights) is None:
        yield (
            "warn",
            "evaluate will download the weights of InceptionV3; where there is no network, fetch them before, and set "
            "evaluate.fidelity.weights to the file",
        )
    yield "ok", f"the folder {cfg.folder}" if cfg.folder is not None else f"the {cfg.split} split"


def _evaluated_student(experiment: Experiment) -> Found:
    """A student from elsewhere; of a folder, `_evaluated_images` compares the classes."""
    config = experiment.config
    if config.evaluate.student is not None:
        (path,) = choose_students(config, experiment.run).values()
        of_folder = config.evaluate.folder is not None
        open_student(path, student_classes(path) if of_folder else experiment.classes, "cpu")
        yield "ok", f"the student {path}"


def _evaluated_images(experiment: Experiment) -> Found:
    config, cfg = experiment.config, experiment.config.evaluate
    if cfg.folder is None:
        if cfg.split in experiment.splits:  # else `data` has said so
            refuse_unlabelled(*experiment.labelled(cfg.split), cfg.split)
        refuse_unknown_objects(cfg, experiment.classes)
        return
    student = Path(cfg.student or "").expanduser()
    dataset, split = open_folder(config, student_classes(student) if student.is_file() else experiment.classes)
    refuse_unknown_objects(cfg, dataset.classes)
    yield from problems(dataset, config.prepare.on_bad_file == "skip")
    yield from look_into(experiment, dataset, split)
    if (meaning := dataset.label_meaning(split)) is not None:
        yield "ok", meaning.describe(split)
        refuse_other_meaning(_learnt(experiment), meaning)


def _learnt(experiment: Experiment) -> LabelMeaning | None:
    """As `evaluate` finds it, or, before `prepare`, of the dataset."""
    cfg = experiment.config
    if experiment.report is not None or cfg.evaluate.student is not None or "train" not in experiment.splits:
        return learnt_meaning(cfg, experiment.run)
    return experiment.dataset.label_meaning("train")


def predict(experiment: Experiment) -> Found:
    cfg, names = experiment.config.predict, experiment.config.train_saross.training_sets
    chosen = cfg.training_set or names[-1]
    if chosen not in names and not student_folder(experiment.config, chosen).exists():
        yield (
            "refused",
            f"predict.training_set is {chosen}, which train_saross.training_sets ({', '.join(names)}) does not "
            "train; set it to one of them",
        )
    if cfg.inputs is not None:
        inputs = Path(cfg.inputs).expanduser()
        refuse_outputs_as_inputs(inputs, experiment.run / "predict" / chosen)
        found, unread = list_images(inputs)
        yield from (("warn", f"not read: {name}") for name in unread)
        read_image(found[0])
        yield "ok", f"{len(found)} images in {cfg.inputs}; the first was read"
    else:
        refuse_no_test_split(experiment.run / "prepare" / "test", "test" in experiment.splits)
        yield "ok", f"the first {cfg.num_images} images of the test split"
