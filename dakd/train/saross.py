"""The training of students, SAROSS-Net or a rival by name, on real labels, soft labels and their mix (Eq. 8-10)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dakd.config import Config, StudentConfig, StudentLossConfig, TrainingSet, TrainSarossConfig
from dakd.data.batch import Batch
from dakd.data.datasets import StudentDataset
from dakd.data.held_out import held_out_places
from dakd.data.loader import report_skipped
from dakd.data.prepared import open_prepared, open_shards, open_unlabelled, reading_options
from dakd.data.sample import IGNORE_INDEX
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import check_temperature, common_range
from dakd.data.transforms import to_student
from dakd.kernels.seg_loss import SegLoss, seg_loss
from dakd.metrics.confusion import count_pairs
from dakd.metrics.scores import one_class_note
from dakd.models.registry import STUDENT_CLASSES, build_student
from dakd.models.separate_norm import separate_batch_norm, separate_norms
from dakd.models.student import StudentNet
from dakd.runtime.distributed import device, is_main
from dakd.runtime.files import file_hash
from dakd.runtime.precision import pays_in_student
from dakd.runtime.runlog import say
from dakd.runtime.tensor_files import load_state, load_strict, read_metadata
from dakd.train.engine import Engine
from dakd.train.recalibrate import even_batches, recalibrate
from dakd.train.student_losses import boundary_loss, check_kd_form, distillation_loss, kd_scale, soft_dice
from dakd.train.training import Training, is_due, run_training
from dakd.train.validation import SCORES, Validation
from dakd.weights import STUDENT_FILES, refuse_other_student, save_student

_LOOKED_AT = 16  # training samples, for the note on a student that predicts one class


class StudentLoss(nn.Module):
    """The student's loss on a batch that may mix real and synthetic samples."""

    def __init__(
        self,
        net: StudentNet,
        cfg: StudentLossConfig,
        seed: int,
        memory_format: torch.memory_format,
        batch_norm: str = "local",
        masks_pairs: bool = False,
    ):
        """masks_pairs: whether the label beside a soft label marks, by IGNORE_INDEX, the pixels that do not count."""
        super().__init__()
        self.net, self.cfg, self.seed, self.memory_format = net, cfg, seed, memory_format
        self.batch_norm, self.masks_pairs = batch_norm, masks_pairs
        self.separate_norms = separate_norms(net)
        weights = None if cfg.class_weights is None else torch.tensor(cfg.class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def train(self, mode: bool = True) -> StudentLoss:
        """Frozen batch norm stays as it is in evaluation: its statistics are fixed, its weights are trained."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        cfg = self.cfg
        if self.net.has_own_loss:
            return self._own_loss(batch)
        logits = self._logits(batch)
        terms = self._terms_of_both(logits, batch) if cfg.hard_labels == "both" else self._terms(logits, batch)
        loss = cfg.ce * terms.ce + cfg.kd * kd_scale(cfg) * terms.kd + cfg.dice * terms.dice
        extra = {}
        if cfg.boundary:
            row = None if cfg.hard_labels == "both" else batch.teacher_row
            extra["boundary"] = boundary_loss(logits, batch.label, row)
            loss = loss + cfg.boundary * extra["boundary"]
        # pixels whose class the table does not have; they count as unknown
        invalid = terms.num_invalid.to(loss.dtype)
        losses = {"loss": loss, "ce": terms.ce, "kd": terms.kd, "dice": terms.dice, "num_invalid_labels": invalid}
        return losses | extra

    def _terms(self, logits: Tensor, batch: Batch) -> SegLoss:
        """Of real samples cross-entropy and Dice, of samples with a soft label distillation and, if asked for, Dice."""
        cfg, counts = self.cfg, self._counts(batch)
        teacher, row, soft_range = batch.teacher, batch.teacher_row, batch.teacher_range
        has_other_kd = cfg.kd_form != "temperature" or counts is not None
        has_soft_dice = cfg.dice_samples == "all"
        needs_teacher = not has_other_kd or (has_soft_dice and counts is None)
        terms = self._op(logits, batch.label, teacher if needs_teacher else None, row, soft_range, cfg.dice_samples)
        if has_soft_dice and counts is not None:
            masked = soft_dice(logits, teacher, row, soft_range, counts, cfg.dice_form)
            terms = terms._replace(dice=torch.where(row < 0, terms.dice, masked))
        if has_other_kd:
            terms = terms._replace(kd=distillation_loss(logits, teacher, row, soft_range, cfg, counts))
        return terms

    def _terms_of_both(self, logits: Tensor, batch: Batch) -> SegLoss:
        """Of all samples cross-entropy with their hard labels, of those with a soft label distillation too."""
        cfg, counts = self.cfg, self._counts(batch)
        teacher, row, soft_range = batch.teacher, batch.teacher_row, batch.teacher_range
        # The op gives a sample with a teacher no cross-entropy, so it is called once without and once with it.
        terms = self._op(logits, batch.label, None, None, None, "all")
        if cfg.dice_samples == "real":
            terms = terms._replace(dice=torch.where(row < 0, terms.dice, 0))
        if cfg.kd_form != "temperature" or counts is not None:
            return terms._replace(kd=distillation_loss(logits, teacher, row, soft_range, cfg, counts))
        return terms._replace(kd=self._op(logits, batch.label, teacher, row, soft_range, "none").kd)

    def _op(
        self,
        logits: Tensor,
        label: Tensor,
        teacher: Tensor | None,
        row: Tensor | None,
        soft_range: float | None,
        dice_samples: str,
    ) -> SegLoss:
        return seg_loss(
            logits,
            label,
            teacher,
            row,
            teacher_range=soft_range,
            temperature=self.cfg.temperature,
            class_weights=self.class_weights,
            dice_samples=dice_samples,
            dice_form=self.cfg.dice_form,
        )

    def _counts(self, batch: Batch) -> Tensor | None:
        """(B, H, W): the pixels that count beside a soft label; None where all do."""
        return batch.label != IGNORE_INDEX if self.masks_pairs else None

    def _logits(self, batch: Batch) -> Tensor:
        """(B, K, H, W).  Where batch norm is separate the net is given the real samples before the synthetic ones."""
        image, positions = batch.image, batch.host_positions
        order = self._real_ones_first(batch) if self.separate_norms else None
        if order is not None:
            image, positions = image.index_select(0, order.to(image.device)), positions[order]
        self.net.set_sample_positions(positions, self.seed)
        logits = self.net(to_student(image).to(memory_format=self.memory_format))
        return logits if order is None else logits.index_select(0, order.argsort().to(logits.device))

    def _real_ones_first(self, batch: Batch) -> Tensor | None:
        """(B,) rows on the host, None where they stand so already; and the batch norms learn how many there are."""
        is_synthetic = batch.host_is_synthetic
        num_synthetic = int(is_synthetic.sum())
        for norm in self.separate_norms:
            norm.rows = len(is_synthetic) - num_synthetic, num_synthetic
        order = is_synthetic.int().argsort(stable=True)
        return None if bool((order.diff() == 1).all()) else order

    def _own_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of a net that has a loss of its own, on labels: synthetic samples are labelled by the teacher's argmax.

        Or by their hard label, where they have one beside the soft label.
        """
        has_labels = self.masks_pairs or self.cfg.hard_labels == "both"
        label = batch.label if has_labels else with_teachers_labels(batch.label, batch.teacher, batch.teacher_row)
        losses = self.net.loss_of(to_student(batch.image).to(memory_format=self.memory_format), label)
        invalid = ((label != IGNORE_INDEX) & (label >= self.net.num_classes)).sum()
        return losses | {"num_invalid_labels": invalid.to(losses["loss"].dtype)}


def with_teachers_labels(label: Tensor, teacher: Tensor | None, teacher_row: Tensor) -> Tensor:
    """(B, H, W): the labels, and for samples with a row in the teacher its likeliest classes (the smallest codes)."""
    if teacher is None or not len(teacher):
        return label
    best = (teacher.argmin(1) if teacher.dtype == torch.uint8 else teacher.argmax(1)).to(label.dtype)
    # Rows of -1 are read as row 0 and then discarded: no branch, so the host need not wait for the device.
    return torch.where((teacher_row < 0)[:, None, None], label, best[teacher_row.clamp_min(0)])


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
            "init_from": None if cfg.init_from is None else file_hash(cfg.init_from),
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
        line = self.validation.score(engine.net_weights("ema"), step)
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

    def finish(self, engine: Engine) -> None:
        for kind in STUDENT_FILES:
            weights, facts = self._final(engine, kind)
            if is_main():
                net = self.new_net()
                load_strict(net, weights, "the training engine")
                facts = self.identity | {"weights": kind, "views": self.views()} | facts
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
            weights = self._recalibrated(weights, kind)
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

    def _recalibrated(self, weights: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        """The weights with batch norm's statistics of the real images that the student was trained on."""
        say(f"{self.label}: batch norm of the {kind} weights is recalibrated on {self.dataset.num_real} real images")
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


def check_batch_norm(cfg: TrainSarossConfig) -> None:
    """ValueError where the device has no batch norm of that kind."""
    if cfg.batch_norm == "sync" and device().type != "cuda":
        raise ValueError("batch_norm is sync, which torch supports only on GPUs; set it to local or frozen")


def check_statistics(cfg: TrainSarossConfig, num_classes: int) -> None:
    """ValueError where batch norm is separate or recalibrated, and the student has none of samples."""
    asked = {"batch_norm": "local"} if cfg.batch_norm == "separate" else {}
    asked |= {"recalibrate": "none"} if cfg.recalibrate != "none" else {}
    lack = _lack_of_batch_norm(cfg.student, num_classes) if asked else ""
    for setting, default in asked.items() if lack else ():
        raise ValueError(f"{setting} is {getattr(cfg, setting)}, and the student {lack}; set {setting} to {default}")


def _lack_of_batch_norm(cfg: StudentConfig, num_classes: int) -> str:
    """What the student has in place of batch norms of samples; empty where it has such ones."""
    if STUDENT_CLASSES[cfg.name].has_own_loss:
        return f"{cfg.name} has batch norms that may see objects"
    with torch.device("meta"):
        net = build_student(cfg, num_classes)
    has_one = any(isinstance(module, _BatchNorm) for module in net.modules())
    return "" if has_one else f"{cfg.name} with {cfg.encoder} has no batch norm"


def check_loss(
    cfg: TrainSarossConfig,
    num_classes: int,
    has_synthetic: bool,
    soft_range: float | None = None,
    has_ignored: bool = False,
) -> None:
    """ValueError for settings of the loss that do not fit the classes or the soft labels.

    soft_range: of the stored codes; None for logits, and where they are not known yet.
    has_ignored: whether the pairs store hard labels, which may mark pixels that count in no loss.
    """
    weights = cfg.loss.class_weights
    if weights is not None and len(weights) != num_classes:
        raise ValueError(f"class_weights has {len(weights)} values for {num_classes} classes; give one for each")
    if has_synthetic and cfg.loss.hard_labels is not True and not STUDENT_CLASSES[cfg.student.name].has_own_loss:
        temperatures = check_kd_form(cfg.loss, num_classes, soft_range, has_ignored)
        # Dice compares with the soft label as it is, at temperature 1.
        has_soft_dice = cfg.loss.dice_samples == "all" and cfg.loss.dice and not cfg.loss.hard_labels
        temperatures += [1.0] if has_soft_dice else []
        check_temperature(soft_range, temperatures, num_classes)


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


def reads_generated_pairs(config: Config, training_sets: tuple[TrainingSet, ...] | None = None) -> bool:
    """Whether these trainings, None for the configured ones, depend on the pairs that the run has generated."""
    cfg = config.train_saross
    # Epochs are counted over the largest of some sets, whichever is trained.
    names = {*(training_sets or cfg.training_sets), *cfg.epoch_sets}
    return cfg.synthetic is None and any("synthetic" in name for name in names)


def reads_pseudo_labels(config: Config, training_sets: tuple[TrainingSet, ...] | None = None) -> bool:
    """Whether these trainings, None for the configured ones, read what the run's step pseudo_label has written."""
    cfg = config.train_saross
    # Epochs are counted over images, labelled or not.
    return cfg.pseudo is None and any("pseudo" in name for name in training_sets or cfg.training_sets)


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
    synthetic = open_shards(str(config.pairs), config.data) if "synthetic" in training_set else None
    pseudo = num_pseudo = None
    if is_counted and reads_pseudo_labels(config, (training_set,)):
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
