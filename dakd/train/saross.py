"""The training of students, SAROSS-Net or a rival by name, on real labels, soft labels and their mix (Eq. 8-10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dakd.config import Config, TrainingSet, TrainSarossConfig
from dakd.data.datasets import StudentDataset
from dakd.data.good_records import good_samples
from dakd.data.held_out import held_out_places
from dakd.data.loader import report_skipped
from dakd.data.prepared import open_prepared, reading_options
from dakd.data.radiometry import Radiometry, radiometry_of
from dakd.data.sample import IGNORE_INDEX
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import common_range
from dakd.data.transforms import to_student
from dakd.metrics.confusion import count_pairs
from dakd.metrics.scores import one_class_note
from dakd.models.registry import build_student
from dakd.models.separate_norm import separate_batch_norm
from dakd.models.student import StudentNet
from dakd.runtime.distributed import device, is_main
from dakd.runtime.precision import pays_in_student
from dakd.runtime.runlog import say
from dakd.runtime.tensor_files import load_state, load_strict, read_metadata, weights_hash
from dakd.train.batch_loss import StudentLoss, with_teachers_labels
from dakd.train.engine import Engine
from dakd.train.recalibrate import even_batches, recalibrate
from dakd.train.student_checks import check_batch_norm, check_loss, check_statistics
from dakd.train.student_data import student_dataset, student_steps
from dakd.train.training import Training, is_due, run_training
from dakd.train.validation import SCORES, Validation
from dakd.weights import STUDENT_FILES, refuse_other_student, save_student

_MEASURED = 1000  # images, for the radiometry
_LOOKED_AT = 16  # training samples, for the note on a student that predicts one class


class StudentTraining(Training):
    """The student of one training set. Raises ValueError where its data are absent or its settings do not fit them."""

    section: TrainSarossConfig
    dataset: StudentDataset
    key, low_precision = "train_saross", "autocast"
    decays_vectors = False

    def __init__(self, config: Config, training_set: TrainingSet):
        self.config, self.section, self.training_set = config, config.train_saross, training_set
        self.label, self.folder = f"student {training_set}", student_folder(config, training_set)
        self.lr, self.seed = self.section.optimizer.lr, config.seed
        self.total_steps = student_steps(config, training_set)
        self.dataset = student_dataset(config, training_set, self.total_steps)
        self.validation = self._validation()
        self.classes = self.dataset.classes
        pair_sets = [pairs for pairs in (self.dataset.synthetic, self.dataset.pseudo) if pairs is not None]
        soft_range = None if self.section.loss.hard_labels is True else _soft_range_of(pair_sets)
        has_ignored = self.dataset.stores_labels
        check_loss(self.section, self.classes.num_classes, bool(pair_sets), soft_range, has_ignored)
        check_batch_norm(self.section)
        check_statistics(self.section, self.classes.num_classes)
        statistics = self.section.statistics_of(training_set)
        self.batch_norm, self.recalibrate = statistics["batch_norm"], statistics["recalibrate"]
        if self.recalibrate != "none" and self.dataset.num_real < 2:
            raise ValueError(
                f"recalibrate is {self.recalibrate}, and there are {self.dataset.num_real} real images; expected at "
                "least 2; set recalibrate to none"
            )
        if self.section.init_from is not None:
            refuse_other_student(self.section.init_from, self.section.student, self.classes)
        sources = [self.dataset.real, *pair_sets]
        if self.validation is not None and self.dataset.real is None:  # it chooses weights by real images nevertheless
            sources.append(self.validation.real)
        self.data = [source.fingerprint for source in sources if source is not None]

    def _validation(self) -> Validation | None:
        cfg, config = self.section.validation, self.config
        if not cfg.share:
            return None
        real = open_prepared(config, "train")
        places = held_out_places(real, cfg.share, config.seed)
        return Validation(cfg, self.new_net, real, places, self.folder, self.label, config.data.on_bad_record)

    def new_net(self) -> StudentNet:
        """The student with fresh weights."""
        return build_student(self.section.student, self.classes.num_classes)

    def build(self, is_new: bool) -> nn.Module:
        cfg, net = self.section, self.new_net()
        if is_new and cfg.init_from is not None:
            load_strict(net, load_state(cfg.init_from), cfg.init_from)
        elif is_new:
            net.load_pretrained(cfg.student.pretrained)
        if self.batch_norm == "sync":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        elif self.batch_norm == "separate":
            net = separate_batch_norm(net)
        masks_pairs = self.dataset.stores_labels
        return StudentLoss(net, cfg.loss, self.seed, self.memory_format, self.batch_norm, masks_pairs)

    def pays_in_bf16(self, module: nn.Module) -> bool:
        return pays_in_student(sum(parameter.numel() for parameter in module.parameters()))

    def own_identity(self) -> dict:
        cfg, mixing = self.section, self.dataset.mixing
        is_pair, positions = isinstance(cfg.synthetic_share, tuple), self.total_steps * cfg.global_batch
        return {
            "training_set": self.training_set,
            "student": cfg.student.model_dump(mode="json"),
            "loss": cfg.loss.model_dump(mode="json"),
            "mosaic": cfg.mosaic,
            "batch_norm": self.batch_norm,
            "recalibrate": None if self.recalibrate == "none" else self.recalibrate,
            "num_synthetic": self.dataset.num_synthetic,
            # None, not 0: files from before such sets have none.
            "num_pseudo": self.dataset.num_pseudo or None,
            "synthetic_share": None if is_pair and not mixing.has_both else cfg.synthetic_share,
            # None as before there were schedules. The budget is not here: it decides nothing but the number of steps.
            "schedule": {"order": cfg.schedule, "positions": positions} if mixing.follows_length else None,
            # None: files from before this setting have none. A temperature is no part of the training.
            "validation": cfg.validation.model_dump(mode="json", exclude={"calibrate"}) if self.validation else None,
            "init_from": None if cfg.init_from is None else weights_hash(cfg.init_from),
        }

    def weights_file(self, kind: str) -> Path:
        return self.folder / STUDENT_FILES[kind]

    # -- held-out samples ---------------------------------------------------------------------------------------------

    @property
    def end_step(self) -> int:
        ended = None if self.validation is None else self.validation.end_step
        return self.total_steps if ended is None else min(ended, self.total_steps)

    def begin(self, first_step: int) -> None:
        if self.validation is not None:
            count, of = len(self.validation.places), len(self.validation.real)
            say(f"{self.label}: {count} of {of} real training samples are held out for validation")
            self.validation.begin(first_step)

    def score(self, engine: Engine, step: int) -> dict[str, float]:
        cfg = self.section.validation
        if self.validation is None or not is_due(cfg.every, step, self.total_steps):
            return {}
        weights = engine.net_weights("ema")
        if self.recalibrate == "real" and is_main():  # as the final weights will be
            weights = self._recalibrated(weights)
        line = self.validation.score(weights, step)
        if step == self.end_step < self.total_steps:
            say(f"{self.label}: ends after step {step} of {self.total_steps}: {cfg.patience} scorings brought nothing")
        scores = {"validation_miou": line["miou"], "validation_loss": line["loss"]}
        return {name: value for name, value in scores.items() if value is not None}

    @property
    def own_files(self) -> list[Path]:
        return [] if self.validation is None else [self.folder / SCORES]

    # -- final weights ------------------------------------------------------------------------------------------------

    def is_done(self) -> bool:
        """As of all trainings; not where the weights were calibrated and are not to be, or the other way round."""
        if not super().is_done():
            return False
        if not self._is_calibrated_as_set():
            say(f"{self.label}: validation.calibrate has changed: the final weights are written again")
            return False
        return True

    def is_done_without_checkpoints(self) -> bool:
        if not super().is_done_without_checkpoints():
            return False
        if not self._is_calibrated_as_set():
            wanted = self.section.validation.calibrate
            raise ValueError(
                f"{self.weights_file('ema')} was finished with validation.calibrate {not wanted}, and its checkpoints "
                f"are gone; expected {wanted}: set it back, or remove {self.folder} to train again"
            )
        return True

    def _is_calibrated_as_set(self) -> bool:
        """Whether the final weights have a temperature exactly where they are to have one."""
        try:
            facts = read_metadata(self.weights_file("ema"))
        except (ValueError, OSError):  # damaged: who reads the weights says so
            return True
        return ("temperature" in facts) == self.section.validation.calibrate

    def views(self) -> dict[str, int]:
        """The training's steps, and the real and synthetic samples that they draw."""
        return {"steps": self.end_step} | self.dataset.views(self.end_step * self.section.global_batch)

    def facts(self) -> dict:
        """What the files of the weights state beside the net and its classes."""
        return self.identity | {"views": self.views(), "radiometry": self._radiometry().to_dict()}

    def _radiometry(self) -> Radiometry:
        """Of the real images, of at most a thousand of them, evenly spread."""
        real = self.dataset.real or open_prepared(self.config, "train")
        places = range(0, len(real), -(-len(real) // _MEASURED))
        samples = good_samples(real, places, self.config.data.on_bad_record, "the radiometry")
        return radiometry_of(self.config.prepare, (sample.sar for _, sample in samples))

    def finish(self, engine: Engine) -> None:
        own_facts = self.facts() if is_main() else {}
        for kind in STUDENT_FILES:
            weights, facts = self._final(engine, kind)
            if is_main():
                net = self.new_net()
                load_strict(net, weights, "the training engine")
                facts = own_facts | {"weights": kind} | facts
                save_student(self.weights_file(kind), net, self.section.student, self.classes, facts)
                if kind == "ema" and (note := self._one_class_note(net)):
                    say(note)

    def _final(self, engine: Engine, kind: str) -> tuple[dict[str, Tensor], dict]:
        """The final weights of a kind on rank 0, and what their metadata say of the held-out samples; a collective."""
        weights, facts = None, {}
        if kind == "ema" and self.validation is not None:
            weights, facts = self.validation.chosen_weights(), {"validation_scores": self.validation.facts()}
        weights = engine.net_weights(kind) if weights is None else weights
        if self.recalibrate == "real" and is_main():
            num_real = self.dataset.num_real
            say(f"{self.label}: batch norm of the {kind} weights is recalibrated on {num_real} real images")
            weights = self._recalibrated(weights)
        if self.section.validation.calibrate:
            facts |= {"temperature": self.validation.fit(weights, kind).temperature}
        return weights, facts

    def _one_class_note(self, net: StudentNet) -> str | None:
        """A sentence where the averaged weights predict one class for all held-out images, or training samples."""
        if self.validation is not None:
            return self.validation.note()
        count = min(_LOOKED_AT, self.section.global_batch * self.total_steps)
        net, counts = net.to(device()).eval(), 0
        for position in range(count):  # one by one: no more memory than an image takes
            batch = self.dataset.batch([position]).to(device())
            label = with_teachers_labels(batch.label, batch.teacher, batch.teacher_row)
            label = label.masked_fill(label >= net.num_classes, IGNORE_INDEX)  # of a class that the table lacks
            with torch.inference_mode():
                counts = counts + count_pairs(net(to_student(batch.image)).argmax(1), label, net.num_classes)
        where = f"the first {count} training samples"
        return one_class_note(self.label, counts.cpu().numpy(), self.classes.names, where)

    def _recalibrated(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with batch norm's statistics of the real images that the student is trained on."""
        net = self.new_net()
        load_strict(net, weights, "the training engine")
        recalibrate(net.to(device(), memory_format=self.memory_format), self._real_images())
        return net.to("cpu", memory_format=torch.contiguous_format).state_dict()

    def _real_images(self) -> Iterator[Tensor]:
        """(B, 3, h, w): every real image once, cropped as a training on real images alone crops its first epoch."""
        cfg, config = self.section, self.config
        options = {"mosaic": False, "flip": False, "seed": config.seed} | reading_options(config.data)
        held_out = [] if self.validation is None else self.validation.places
        dataset = StudentDataset(self.dataset.real, None, cfg.crop, held_out=held_out, **options)
        batches = map(dataset.batch, even_batches(dataset.epoch_length, cfg.global_batch))
        for batch in report_skipped(batches, self.folder):
            yield to_student(batch.image.to(device())).to(memory_format=self.memory_format)


def _soft_range_of(pair_sets: list[ShardSet]) -> float | None:
    """The one range of the soft labels of sets that are mixed in batches; ValueError where they differ."""
    where = " with ".join(str(pairs.folder) for pairs in pair_sets)
    return common_range({pairs.index.soft_range for pairs in pair_sets}, f"a training on {where}")


def student_folder(config: Config, training_set: TrainingSet) -> Path:
    return config.run_path / "train_saross" / training_set


def train_saross(config: Config, training_sets: tuple[TrainingSet, ...] | None = None) -> None:
    """Train one student, SAROSS-Net or a rival by name, for each training set, all with the same budget."""
    # All are set up before the first is trained: data that one of them lacks is reported at once.
    for training in list_trainings(config, training_sets):
        run_training(training)


def list_trainings(config: Config, training_sets: tuple[TrainingSet, ...] | None = None) -> list[StudentTraining]:
    """The trainings of these sets, None for the configured ones.  ValueError where the data of one are not there."""
    return [StudentTraining(config, one) for one in training_sets or config.train_saross.training_sets]
