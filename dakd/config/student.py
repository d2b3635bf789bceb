"""The settings of `train_saross`: the student, its loss and its training sets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from dakd.config.base import Fraction, Positive, Section, Size, expected
from dakd.config.training import EngineConfig, OptimizerConfig

TrainingSet = Literal["real", "real+synthetic", "synthetic", "real+pseudo", "real+synthetic+pseudo"]

SkipModule = Literal["caft", "conv3x3", "none"]

MixSchedule = Literal["mixed", "synthetic_then_real"]
# Of the synthetic samples: a number, or the first and the last share of a training.
SyntheticShare = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | tuple[Fraction, Fraction] | None,
    expected("null, a number above 0 and below 1, or a pair of numbers from 0 to 1, such as [0.8, 0.2]"),
]


class StudentKind(NamedTuple):
    """title: of the net in print.  encoder: the one that it takes where none is named."""

    title: str
    encoder: str


# The students by name; dakd/models/registry.py has their classes. SAROSS-Net's encoder is the paper's; those of the
# others are what their authors (deeplabv2, segformer, cbdnet) or their library takes, and for DeepLabV3+ the best one
# on OSD (ResNet-50, arXiv 2305.01386). The paper names the rivals' encoders nowhere (inferred).
STUDENT_KINDS = {
    "saross": StudentKind("SAROSS-Net", "mamba_vision_b"),
    "unet": StudentKind("UNet", "resnet34"),
    "linknet": StudentKind("LinkNet", "resnet34"),
    "pspnet": StudentKind("PSPNet", "resnet34"),
    "deeplabv3plus": StudentKind("DeepLabV3+", "resnet50"),
    "segformer": StudentKind("SegFormer", "mit_b2"),
    "unetplusplus": StudentKind("UNet++", "resnet34"),
    "deeplabv2": StudentKind("DeepLabv2", "resnet101"),
    "cbdnet": StudentKind("CBD-Net", "resnet34"),
    "sam_oil": StudentKind("SAM-OIL", "fasterrcnn_resnet50_fpn"),
}
_SAROSS_SETTINGS = ("decoder_channels", "caft_ratio", "caft_heads", "skip_module")


class SamOilConfig(Section):
    """SAM-OIL: SAM turns a detector's boxes into masks (Wu et al. 2024); its sizes are stated nowhere (inferred)."""

    min_score: Fraction = 0.25
    """Lowest score of a detection that is kept."""

    order: tuple[Positive, ...] | None = None
    """Class ids, the first of which wins a pixel that masks of several classes claim. null lets the higher score win.
    """

    sam_config: dict[str, Any] | None = None
    """SAM's sizes. null reads config.json of the folder `pretrained`."""


class StudentConfig(Section):
    """SAROSS-Net (an encoder and the CAFT triangle), or one of its rivals by name."""

    kind_key: ClassVar[str] = "name"

    name: Literal[tuple(STUDENT_KINDS)] = "saross"
    """Net of the student: SAROSS-Net ("saross") or a rival."""

    encoder: str | None = None
    """Encoder of the net. null takes the net's own default, which is then stored. saross: mamba_vision_{t,t2,s,b,l};
    mamba_vision (with encoder_options); resnet18; resnet34; timm:NAME, a feature extractor. cbdnet: resnet18, resnet34.
    sam_oil: the detector, a fasterrcnn_... of torchvision (resnet50_fpn, resnet50_fpn_v2, mobilenet_v3_large_fpn,
    mobilenet_v3_large_320_fpn) or package.module:Class. The others: any encoder of segmentation_models_pytorch."""

    encoder_options: dict[str, Any] = Field(default={})
    """Keyword arguments. saross, cbdnet: of the encoder. deeplabv2: rates, output_stride. sam_oil: of the detector. The
    others: of their class in segmentation_models_pytorch, such as decoder_channels of unet."""

    pretrained: str | None = None
    """A public checkpoint file of the encoder; for sam_oil the folder of SAM. null starts from random weights."""

    decoder_channels: tuple[Positive, Positive, Positive, Positive] = (256, 256, 128, 64)
    """Widths of the four decoder blocks, from the coarsest (inferred). Only for saross."""

    caft_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Inner width of a CAFT node over the channels of its row, HR (inferred). Only for saross."""

    caft_heads: tuple[Positive, Positive, Positive] = (1, 2, 4)
    """Attention heads of the CAFT nodes in rows 1, 2, 3 (inferred). Only for saross."""

    skip_module: SkipModule = "caft"
    """Kind of the skip modules: CAFT (paper), a 3 x 3 convolution, or none. Only for saross."""

    sam_oil: SamOilConfig = SamOilConfig()
    """Settings of the student sam_oil, and of no other."""

    @model_validator(mode="before")
    @classmethod
    def _default_encoder(cls, tree: Any) -> Any:
        """Write the encoder's name out, so that a saved configuration does not follow a new default."""
        if not isinstance(tree, dict) or tree.get("encoder") is not None:
            return tree
        name = tree.get("name", "saross")
        is_known = isinstance(name, str) and name in STUDENT_KINDS
        return tree | {"encoder": STUDENT_KINDS[name].encoder if is_known else None}

    @model_validator(mode="after")
    def _has_its_own_settings(self) -> StudentConfig:
        fields = type(self).model_fields
        foreign = [key for key in _SAROSS_SETTINGS if getattr(self, key) != fields[key].default]
        if self.name != "saross" and foreign:
            raise ValueError(
                f"{', '.join(foreign)}: only SAROSS-Net has these settings, found with {self.name}; leave them out, or "
                f"begin with the defaults: train_saross.student=null train_saross.student.name={self.name}"
            )
        if self.name != "sam_oil" and self.sam_oil != fields["sam_oil"].default:
            raise ValueError(f"sam_oil holds settings of the student sam_oil, found with {self.name}; leave it out")
        return self


class StudentLossConfig(Section):
    """The loss, ce CE + kd tau^2 KD + dice Dice: a sum over samples divided by the global batch (paper, Eq. 8-10)."""

    ce: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross-entropy with hard labels (inferred)."""

    kd: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation from soft labels (inferred)."""

    dice: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Dice loss (inferred)."""

    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature tau that soft labels are softened with (inferred)."""

    dice_samples: Literal["real", "all"] = "real"
    """Samples that have a Dice loss: real ones, or synthetic ones too (inferred). A synthetic sample is compared with
    its hard label where it has one as a target (`hard_labels`), else with its soft label."""

    dice_form: Literal["soft", "generalized"] = "soft"
    """Form of the Dice loss: "soft", a mean over the classes, or "generalized" (Sudre et al. 2017)."""

    class_weights: tuple[float, ...] | None = None
    """Weights of the classes in the cross-entropy, one for each class id. null weighs all classes equally."""

    hard_labels: Literal["both"] | bool = False
    """Targets of synthetic samples. false: the soft label. true: the hard label, by which they are treated as real
    ones. "both": distillation from the soft label and cross-entropy with the hard one. The hard label is the one that
    the pairs store, else the teacher's argmax."""

    kd_form: Literal["temperature", "confidence", "standardized", "dist"] = "temperature"
    """Form of the distillation. "temperature" is the paper's; others are for comparison (train/student_losses.py)."""

    boundary: Annotated[float, Field(ge=0)] = 0.0
    """Weight of CBD-Net's boundary term (train/student_losses.py) on samples with hard labels, for any student. 0 means
    no such term; CBD-Net's own rows have 1 (inferred)."""


class StudentOptimizerConfig(OptimizerConfig):
    """The student's optimizer; its learning rate is one for the whole training."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate after the warm-up (inferred)."""


class ValidationConfig(Section):
    """A part of the real training samples that no student learns from: it chooses the weights and calibrates them.

    It follows from the seed and the samples alone, and is the same for all training sets. The test split is never used.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the real training samples that is held out, with the classes in about the same mixture. 0: none."""

    every: Positive = 50
    """Optimizer steps between two scorings of the EMA weights on the held-out samples; the last step is scored too.
    With `recalibrate` each scoring recalibrates them first, as it will the final ones."""

    keep: Literal["last", "best"] = "last"
    """Step that the final EMA weights are of: the last one, or the one with the highest mIoU on the held-out samples
    (the earliest of equals)."""

    patience: Positive | None = None
    """Number of scorings in a row without a higher mIoU that ends the training. null trains to the last step."""

    calibrate: bool = False
    """Whether the probabilities are calibrated: the logits are divided by one temperature that is fitted to the
    held-out samples (Guo et al. 2017). Class maps stay as they are."""

    @model_validator(mode="after")
    def _has_samples(self) -> ValidationConfig:
        needing = {"keep": self.keep == "best", "patience": self.patience is not None, "calibrate": self.calibrate}
        if not self.share and any(needing.values()):
            names = ", ".join(name for name, is_set in needing.items() if is_set)
            raise ValueError(f"share is 0, and {names} needs held-out samples; set share, such as share: 0.1")
        return self


class TrainSarossConfig(Section):
    """Students on real and synthetic pairs: SAROSS-Net, or a rival by its name (`student.name`)."""

    student: StudentConfig = StudentConfig()

    loss: StudentLossConfig = StudentLossConfig()

    training_sets: Annotated[tuple[TrainingSet, ...], Field(min_length=1)] = ("real+synthetic",)
    """Sets that students are trained on, one student each, with equal numbers of steps. A set with "pseudo" has the
    images that the student of "real" has labelled."""

    crop: Size = (512, 512)
    """Size of the training crops."""

    mosaic: bool = True
    """Whether four synthetic images are tiled to one of twice the size."""

    flip: bool = True
    """Whether crops are flipped at random (inferred)."""

    synthetic: str | None = None
    """Folder or URL of the synthetic pairs. null takes those that this run has generated."""

    num_synthetic: Positive | None = None
    """Number of synthetic pairs, the first ones of the set. null takes all."""

    pseudo: str | None = None
    """Folder or URL of the pseudo-labelled images. null takes those that this run's step pseudo_label has labelled."""

    synthetic_share: SyntheticShare = None
    """Share of synthetic samples in an epoch (a mosaic is one sample), next to every real one once; the synthetic pairs
    are then used at their own pace. null takes every pair once per epoch. A pair [from, to]: the share goes linearly
    from the first number to the second over the training. Only for sets of real and synthetic samples; pseudo-labelled
    images count as synthetic ones."""

    schedule: MixSchedule = "mixed"
    """Order of the two kinds of samples. "mixed": side by side in every part of the training. "synthetic_then_real":
    `synthetic_share` of all samples are synthetic and come first, and only real ones follow; null takes the share that
    synthetic samples have in an epoch. Only for sets of real and synthetic samples."""

    init_from: str | None = None
    """A weights file of a student of the same net and classes, from which the training starts. null starts from
    `student.pretrained` or random weights."""

    batch_norm: Literal["local", "sync", "frozen", "separate"] = "local"
    """Statistics of batch norm while training (inferred). "local": those of each rank's micro-batch, so that the losses
    depend on how the global batch is cut. "sync": those of the micro-batches of all ranks (GPUs). "frozen": those that
    the encoder came with, so that neither ranks nor micro-batch matter. "separate" (not in the paper): those of the
    real and those of the synthetic samples of each micro-batch, both with affine parameters of their own; the student
    keeps the real ones. With samples of one kind alone it is "local". Drop-path is a function of (seed, position)."""

    recalibrate: Literal["none", "real"] = "none"
    """Images from which the final batch norm statistics are computed after the last step (not in the paper): "none"
    leaves the averages of the training, "real" takes one pass over the real training images, cropped and not flipped,
    about `global_batch` at a time. A training set without real images is left as it is."""

    students_at_once: Positive = 1
    """Students that one rank trains at the same time, each by a process with an equal share of the cores. Small nets
    train faster so on CPUs. Several ranks train one student after the other."""

    global_batch: Positive = 16
    """Samples per optimizer step, over all ranks."""

    micro_batch: Positive = 16
    """Samples per rank and forward pass; the rest of the global batch is gradient accumulation."""

    epochs: Positive = 200
    """Epochs over the real and synthetic samples together; every training set gets the same number of steps. With
    `budget: real_views` they are counted over the real samples alone."""

    steps: Positive | None = None
    """Optimizer steps, in place of `epochs`. null follows `epochs`."""

    budget: Literal["steps", "real_views"] = "steps"
    """Unit in which all training sets get the same: "steps", or "real_views". With the latter a set of real and
    synthetic samples takes more steps, until as many real samples were drawn as the set `real` draws in `steps`."""

    validation: ValidationConfig = ValidationConfig()

    optimizer: StudentOptimizerConfig = StudentOptimizerConfig(lr_decay="poly")

    engine: EngineConfig = EngineConfig()

    @property
    def epoch_sets(self) -> tuple[TrainingSet, ...]:
        """The training sets over the largest of which epochs are counted; none where `steps` is set."""
        if self.steps is not None:
            return ()
        has_real = any("real" in name for name in self.training_sets)
        return ("real",) if self.budget == "real_views" and has_real else self.training_sets

    def reads_generated_pairs(self, training_sets: tuple[TrainingSet, ...] | None = None) -> bool:
        """Whether these trainings, None for the configured ones, depend on the pairs that the run generates."""
        # Epochs are counted over the largest of some sets, whichever is trained.
        names = {*(training_sets or self.training_sets), *self.epoch_sets}
        return self.synthetic is None and any("synthetic" in name for name in names)

    def reads_pseudo_labels(self, training_sets: tuple[TrainingSet, ...] | None = None) -> bool:
        """Whether these trainings, None for the configured ones, read what the run's step pseudo_label writes."""
        # Epochs are counted over images, labelled or not.
        return self.pseudo is None and any("pseudo" in name for name in training_sets or self.training_sets)

    def statistics_of(self, training_set: TrainingSet) -> dict[str, str]:
        """The values of `batch_norm` and `recalibrate` that have the same effect on the student of one set."""
        has_real, is_mixed = "real" in training_set, training_set.startswith("real+")
        is_alone = self.batch_norm == "separate" and not is_mixed
        return {
            "batch_norm": "local" if is_alone else self.batch_norm,
            "recalibrate": self.recalibrate if has_real else "none",
        }

    def side_by_side(self, num_ranks: int) -> int:
        """How many of the students train at the same time."""
        return min(self.students_at_once, len(self.training_sets)) if num_ranks == 1 else 1

    @model_validator(mode="after")
    def _statistics_fit_the_other_settings(self) -> TrainSarossConfig:
        if self.batch_norm == "separate" and self.engine.compile:
            raise ValueError(
                f"batch_norm is {self.batch_norm}, and engine.compile {str(self.engine.compile).lower()}: the net "
                "would be compiled again for each number of synthetic samples; set engine.compile to false, or "
                "batch_norm to local"
            )
        if self.recalibrate != "none" and self.batch_norm == "frozen":
            raise ValueError(
                f"recalibrate is {self.recalibrate}, and batch_norm frozen, which keeps the statistics that the "
                "weights were trained with; set recalibrate to none, or batch_norm to local"
            )
        if self.recalibrate != "none" and self.optimizer.posthoc_every:
            raise ValueError(
                f"recalibrate is {self.recalibrate}, and optimizer.posthoc_every {self.optimizer.posthoc_every}, from "
                "which `dakd ema` makes averages without images to recalibrate them on; set one of the two back"
            )
        return self

    @field_validator("training_sets")
    @classmethod
    def _has_no_set_twice(cls, names: tuple[TrainingSet, ...]) -> tuple[TrainingSet, ...]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} more than once; expected each set once: one student is trained on it")
        return names

    @model_validator(mode="after")
    def _has_one_start_and_one_mix(self) -> TrainSarossConfig:
        check_mix(self.schedule, self.synthetic_share)
        if self.init_from is not None and self.student.pretrained is not None:
            raise ValueError(
                f"init_from is {self.init_from} and student.pretrained {self.student.pretrained}; expected one of "
                "them: leave out student.pretrained, for the weights of init_from replace all of the net's"
            )
        return self


def check_mix(schedule: str, share: float | tuple[float, float] | None) -> None:
    """ValueError for a share that the schedule does not have, or that leaves one of the two kinds out."""
    if not isinstance(share, tuple):
        return
    if schedule != "mixed":
        raise ValueError(
            f"synthetic_share is {list(share)} and schedule {schedule}; expected a number or null with this schedule: "
            "give the share of all samples that are synthetic, or set schedule to mixed"
        )
    if share in ((0, 0), (1, 1)):
        left, absent = ("synthetic", "real") if share[0] else ("real", "synthetic")
        raise ValueError(
            f"synthetic_share is {list(share)}, which leaves no {absent} samples; expected two kinds of them: to train "
            f"on one, take the training set {left}"
        )
