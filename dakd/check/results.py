"""What an experiment makes with its nets: pairs, evaluations and predictions."""

from __future__ import annotations

from pathlib import Path

from dakd.check.data import look_into, problems
from dakd.check.experiment import Experiment
from dakd.check.findings import Found
from dakd.data.soft_labels import get_codec
from dakd.evaluate.inputs import open_folder, refuse_unlabelled, student_classes
from dakd.generate.gate import open_gate
from dakd.generate.teacher import refuse_settings_of_another_set
from dakd.predict.images import list_images, read_image, refuse_outputs_as_inputs
from dakd.predict.predict import refuse_no_test_split
from dakd.train.dry_run import cost_of_stage
from dakd.train.saross import student_folder


def generate(experiment: Experiment) -> Found:
    cfg = experiment.config.generate
    teacher = experiment.config.train_jointnet
    if cfg.size != teacher.crop:  # the net's levels must divide it
        cost_of_stage(teacher.stages[-1], teacher.model_copy(update={"crop": cfg.size}), experiment.num_classes)
    get_codec(cfg.codec, experiment.config.soft_label_temperature)
    yield "ok", f"{cfg.num_samples} pairs of {cfg.size[0]}x{cfg.size[1]}, {cfg.codec}"
    for key, path in (("gate.student", cfg.gate.student), ("audit.student", cfg.audit.student)):
        if path is not None and not Path(path).expanduser().is_file():
            yield "refused", f"generate.{key} is {path}, which is no file; give a student.safetensors"
    open_gate(experiment.config, experiment.classes)
    refuse_settings_of_another_set(experiment.config)


def evaluate(experiment: Experiment) -> Found:
    cfg = experiment.config.evaluate
    if cfg.student is not None and not Path(cfg.student).expanduser().is_file():
        yield "refused", f"no weights file at {cfg.student}; set evaluate.student to a student.safetensors"
    if cfg.folder is not None:
        yield from _evaluated_folder(experiment)
    elif cfg.split in experiment.splits:  # else `data` has said so
        refuse_unlabelled(*experiment.labelled(cfg.split), cfg.split)
    weights = cfg.fidelity.weights
    if cfg.fidelity.extractor == "inception" and weights is not None and not Path(weights).is_file():
        yield "refused", f"no weights of InceptionV3 at {weights}; set evaluate.fidelity.weights to them"
    yield "ok", f"the folder {cfg.folder}" if cfg.folder is not None else f"the {cfg.split} split"


def _evaluated_folder(experiment: Experiment) -> Found:
    student = Path(experiment.config.evaluate.student or "").expanduser()
    classes = student_classes(student) if student.is_file() else experiment.classes
    dataset, split = open_folder(experiment.config, classes)
    yield from problems(dataset, experiment.config.prepare.on_bad_file == "skip")
    yield from look_into(experiment, dataset, split)
    if (meaning := dataset.label_meaning(split)) is not None:
        yield "ok", meaning.describe(split)


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
